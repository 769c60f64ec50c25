//! Tells when the last user let go of something.

use std::sync::OnceLock;

use vmm_sys_util::eventfd::EventFd;

/// The last field of what it tells about, so that everything else is gone when it tells.
#[derive(Debug, Default)]
pub struct Closed(OnceLock<EventFd>);

impl Closed {
    /// Has `event` signalled at the end. Only the first call counts.
    pub fn notify(&self, event: EventFd) {
        let _ = self.0.set(event);
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        if let Some(event) = self.0.get() {
            // It fails only at 2^64 - 1 unread writes.
            let _ = event.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_last_user_tells() {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let users = [(); 2].map(|()| Arc::new(Closed::default()));
        let [first, second] = users.clone();
        first.notify(event.try_clone().unwrap());
        drop((first, second));
        assert!(event.read().is_err());
        drop(users);
        assert_eq!(event.read().unwrap(), 1);
    }
}
