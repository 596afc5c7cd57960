//! Waiting: from synchronous code for asynchronous work, which a signal ends, and for times that are left to chance.

use crate::report::{Ctx, Interrupted};
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Two threads for asynchronous work. They are not waited for at the end: a name look-up that hangs in a thread of its own
/// (getaddrinfo cannot be stopped) must not hold the program.
pub struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    /// Starts the threads, which carry this name.
    pub fn new(name: &str) -> io::Result<Self> {
        let made = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build();
        made.map(|runtime| Self(Some(runtime)))
    }

    /// Runs work to its end. A signal ends it at its next await: its connections are closed. Not to be called from
    /// asynchronous code.
    pub fn run<T, E: From<Interrupted>>(&self, ctx: &Ctx, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        ctx.check()?;
        let stop = Arc::new(Notify::new());
        let hook = ctx.interrupt.on_signal({
            let stop = stop.clone();
            move |_| stop.notify_one()
        });
        let Some(runtime) = &self.0 else { return Err(STOPPED.into()) };
        let done = runtime.block_on(async {
            tokio::select! {
                biased;
                done = work => Some(done),
                () = stop.notified() => None,
            }
        });
        drop(hook);
        match done {
            Some(done) => done,
            // Only a signal wakes the other branch.
            None => Err(ctx.check().err().unwrap_or(STOPPED).into()),
        }
    }

    /// Waits; a signal ends that.
    pub fn sleep(&self, time: Duration, ctx: &Ctx) -> Result<(), Interrupted> {
        self.run(ctx, async {
            tokio::time::sleep(time).await;
            Ok(())
        })
    }
}

/// As after SIGTERM.
const STOPPED: Interrupted = Interrupted { signal: 15 };

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A number that no other run has; nothing secret. Each hasher of the standard library begins with other keys.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// From 0 to 1, for waits: many that failed together should not come back together.
pub fn chance() -> f64 {
    // 24 bits are exact in an f64, and in its 32-bit kin.
    f64::from(u32::try_from(random() >> 40).unwrap_or(0)) / f64::from(1 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Interrupt, Silent};
    use std::time::Instant;

    #[test]
    fn a_signal_ends_work_that_hangs_and_nothing_waits_for_its_threads() {
        let ctx = Ctx { reporter: Arc::new(Silent), interrupt: Interrupt::new() };
        let begin = Instant::now();
        let runtime = Runtime::new("test").unwrap();
        let interrupt = ctx.interrupt.clone();
        let told = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            interrupt.set(2);
        });
        // As a name look-up does that gets no answer.
        let hangs = async {
            let _ = tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(30))).await;
            Ok::<(), Interrupted>(())
        };
        assert_eq!(runtime.run(&ctx, hangs).unwrap_err().signal, 2);
        drop(runtime);
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        told.join().unwrap();
    }

    #[test]
    fn chance_is_spread_between_0_and_1() {
        let drawn: Vec<f64> = (0..1000).map(|_| chance()).collect();
        assert!(drawn.iter().all(|c| (0.0..1.0).contains(c)));
        assert!(drawn.iter().any(|c| *c < 0.2) && drawn.iter().any(|c| *c > 0.8));
    }
}
