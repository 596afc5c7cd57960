//! Every request of a push fails once, the ways taking turns, and from every request on for good: in buckets and in registries. The same
//! is done to packages in `tests/publish`.

use crate::proxy::{ALL, Fault, Proxy};
use crate::support::{WAYS, World, all, count, kinds, names};
use slurm_factory::buildcache::check::Kind;
use slurm_factory::publish::Store;

/// A place of this name: by way of the proxy as a patient publisher has it and as one that hardly tries again, and without the proxy.
pub struct Places<'p> {
    pub patient: &'p dyn Fn(&str) -> Box<dyn Store>,
    pub impatient: &'p dyn Fn(&str) -> Box<dyn Store>,
    pub direct: &'p dyn Fn(&str) -> Box<dyn Store>,
}

/// What fails in passing is tried again, and what fails for good is ended by the next run. `busy` is what the server says that is asked
/// too much.
pub fn every_request(world: &World, proxy: &Proxy, places: &Places<'_>, busy: Fault) {
    let keyring = world.keyring();
    world.push_to(&*(places.patient)("count"), &all()).unwrap();
    let requests = proxy.heads().len();
    assert!(requests > 20, "{requests}");
    let whole = |name: &str, when: &str| {
        let direct = (places.direct)(name);
        assert_eq!((kinds(&*direct, &keyring), names(&*direct).len()), (vec![], 3), "{when}");
    };
    let dealt = (0..count(WAYS, 1)).flat_map(|round| (0..requests).zip(ALL.iter().cycle().skip(round)));
    for (place, (number, fault)) in dealt.enumerate() {
        let (name, when) = (format!("once/{place}"), format!("{fault:?} at request {number} of {requests}"));
        proxy.rule(move |n| (n == number).then_some(*fault));
        world.push_to(&*(places.patient)(&name), &all()).unwrap_or_else(|e| panic!("{when}: {e}"));
        whole(&name, &when);
    }
    for number in 0..requests {
        let fault = [Fault::CutBefore, Fault::CutAfter, busy][number % 3];
        let (name, when) = (format!("for-good/{number}"), format!("{fault:?} from request {number} of {requests} on"));
        proxy.rule(move |n| (n >= number).then_some(fault));
        let through = (places.impatient)(&name);
        let result = world.push_to(&*through, &all());
        // What is there is right; only the index may not be there yet.
        let faults = kinds(&*(places.direct)(&name), &keyring);
        assert!(faults.iter().all(|kind| *kind == Kind::BadIndex), "{when}: {faults:?}");
        match result {
            Ok(_) => assert_eq!(faults, [], "{when}, and nothing was said"),
            Err(error) => assert!(error.to_string().starts_with(through.address()), "{error}"),
        }
        proxy.rule(|_| None);
        world.push_to(&*through, &all()).unwrap_or_else(|e| panic!("after {when}: {e}"));
        whole(&name, &when);
    }
}
