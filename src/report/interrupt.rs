//! The token that says "stop": set once by signal handling, asked by every long loop.
//!
//! It also knows what to end at once: a running child registers how it is ended, so that a signal does not
//! wait for the child's next line of output.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

type Hook = Box<dyn Fn(i32) + Send>;

/// The program was told to stop by a signal.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("interrupted by signal {signal}; what was whole is kept, the next run goes on from there")]
pub struct Interrupted {
    /// The signal's number; the exit code is 128 plus it.
    pub signal: i32,
}

/// Shared between the thread that receives signals and the stages.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Inner>);

#[derive(Default)]
struct Inner {
    signal: AtomicI32,
    next: AtomicU64,
    hooks: Mutex<BTreeMap<u64, Hook>>,
}

impl Interrupt {
    /// A token that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the token and runs what [`Interrupt::on_signal`] registered. Later calls run the hooks again.
    pub fn set(&self, signal: i32) {
        let _ = self.0.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
        let hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        for hook in hooks.values() {
            hook(signal);
        }
    }

    /// The signal, once there was one.
    pub fn signal(&self) -> Option<i32> {
        match self.0.signal.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal),
        }
    }

    /// An error once the token is set.
    pub fn check(&self) -> Result<(), Interrupted> {
        self.signal().map_or(Ok(()), |signal| Err(Interrupted { signal }))
    }

    /// Runs `hook` with the signal when one comes (at once if it already came), until the guard is dropped.
    #[must_use = "the hook is removed when the guard is dropped"]
    pub fn on_signal(&self, hook: impl Fn(i32) + Send + 'static) -> HookGuard {
        let id = self.0.next.fetch_add(1, Ordering::SeqCst);
        {
            let mut hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(signal) = self.signal() {
                hook(signal);
            }
            hooks.insert(id, Box::new(hook));
        }
        HookGuard { interrupt: self.clone(), id }
    }
}

/// Keeps a hook registered while it lives.
pub struct HookGuard {
    interrupt: Interrupt,
    id: u64,
}

impl Drop for HookGuard {
    fn drop(&mut self) {
        self.interrupt.0.hooks.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::Interrupt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI32, Ordering};

    #[test]
    fn a_hook_runs_while_it_is_registered_and_not_after() {
        let interrupt = Interrupt::new();
        let seen = Arc::new(AtomicI32::new(0));
        let guard = interrupt.on_signal({
            let seen = seen.clone();
            move |signal| {
                seen.fetch_add(signal, Ordering::SeqCst);
            }
        });
        assert!(interrupt.check().is_ok());
        interrupt.set(15);
        assert_eq!(seen.load(Ordering::SeqCst), 15);
        drop(guard);
        interrupt.set(2);
        assert_eq!(seen.load(Ordering::SeqCst), 15);
        assert_eq!(interrupt.signal(), Some(15), "the first signal decides the exit code");
    }
}
