//! SIGKILL to the real program at random times: the place stays sound, and the next run ends the work.

use crate::program::Program;
use crate::proxy::{Fault, Proxy};
use crate::servers::{BUCKET, Kind, Server};
use crate::world::{address, assert_sound, noise, package, store};
use std::time::{Duration, Instant};

/// How many times; `tests/deep` says more.
const KILLS: &str = "SLURM_FACTORY_TEST_PUBLISH_KILLS";

#[test]
fn killed_at_any_time_the_place_is_sound_and_the_next_run_ends_the_work() {
    let kills: u64 = std::env::var(KILLS).map_or(3, |n| n.parse().unwrap());
    let server = Server::start(Kind::Moto);
    let proxy = Proxy::before(server.port);
    proxy.rule(|_| Some(Fault::Delay(Duration::from_millis(20))));
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "25.11", 3, 40 << 20);
    let program = Program::new(proxy.port, &server);
    let args = |to: &str| ["-q", "publish", package.to_str().unwrap(), "--to", to].map(str::to_owned);
    let begin = Instant::now();
    let answer = program.run(&args(&address("whole")));
    assert_eq!(answer.code, 0, "{}", answer.err);
    let whole = begin.elapsed();
    let mut ended = 0;
    for round in 0..kills {
        let to = address(&format!("kill/{}", round / 4));
        let mut child = program.command(&args(&to)).spawn().unwrap();
        let random = u32::from_le_bytes(noise(round + 1, 8)[4..].try_into().unwrap()) % 1000;
        std::thread::sleep(whole * random / 1000);
        ended += u32::from(child.try_wait().unwrap().is_some());
        let _ = child.kill();
        child.wait().unwrap();
        assert_sound(&store(server.port, &server, &format!("kill/{}", round / 4)), &[&package]);
        if round % 4 == 3 || round + 1 == kills {
            let answer = program.run(&args(&to));
            assert_eq!(answer.code, 0, "{}", answer.err);
            let named = assert_sound(&store(server.port, &server, &format!("kill/{}", round / 4)), &[&package]);
            assert_eq!(named.len(), 1);
        }
    }
    assert!(u64::from(ended) < kills, "every run had ended before it was killed");
    let left = server.boto(&format!("print(len(s3.list_multipart_uploads(Bucket='{BUCKET}').get('Uploads', [])))"));
    assert_eq!(left.trim(), "0", "unfinished uploads are left");
}
