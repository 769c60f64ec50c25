//! The main thread's loop: waits for file descriptors and calls whoever waits for them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

pub use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};

/// Names a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watch(u64);

type Handler = Rc<RefCell<dyn FnMut(EventSet)>>;

struct Entry {
    fd: OwnedFd,
    handler: Handler,
}

/// An epoll loop on one thread. Handlers may add and remove watches, their own too.
pub struct EventLoop {
    epoll: Epoll,
    entries: RefCell<BTreeMap<u64, Entry>>,
    next: Cell<u64>,
    stopped: Cell<bool>,
}

impl EventLoop {
    /// An empty loop.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            entries: RefCell::default(),
            next: Cell::new(0),
            stopped: Cell::new(false),
        })
    }

    /// Calls `handler` whenever one of `events` holds for `fd` (level-triggered), until removed.
    ///
    /// The loop watches a duplicate, so the caller may close `fd` before or after [`Self::remove`].
    ///
    /// # Errors
    /// `fd` cannot be watched (regular files cannot), or no file descriptor is left.
    pub fn add(
        &self,
        fd: &impl AsRawFd,
        events: EventSet,
        handler: impl FnMut(EventSet) + 'static,
    ) -> io::Result<Watch> {
        let fd = duplicate(fd)?;
        let id = self.next.get();
        let event = EpollEvent::new(events, id);
        self.epoll
            .ctl(ControlOperation::Add, fd.as_raw_fd(), event)?;
        self.next.set(id + 1);
        let handler = Rc::new(RefCell::new(handler));
        self.entries.borrow_mut().insert(id, Entry { fd, handler });
        Ok(Watch(id))
    }

    /// Stops watching. After it returns the handler is not called again.
    pub fn remove(&self, watch: Watch) {
        let entry = self.entries.borrow_mut().remove(&watch.0);
        if let Some(entry) = entry {
            let fd = entry.fd.as_raw_fd();
            // The descriptor is open and registered, so this cannot fail.
            let _ = self
                .epoll
                .ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }

    /// Removes all watches. Handlers hold what they serve, and often the loop itself: without this
    /// neither would ever be dropped.
    pub fn clear(&self) {
        let ids: Vec<u64> = self.entries.borrow().keys().copied().collect();
        ids.into_iter().for_each(|id| self.remove(Watch(id)));
    }

    /// Makes [`Self::run`] return after the handler that calls this.
    pub fn stop(&self) {
        self.stopped.set(true);
    }

    /// Waits and calls handlers until [`Self::stop`].
    ///
    /// # Errors
    /// epoll failed.
    pub fn run(&self) -> io::Result<()> {
        while !self.stopped.get() {
            self.turn()?;
        }
        Ok(())
    }

    /// Waits once, and calls the handlers of what is ready.
    ///
    /// # Errors
    /// epoll failed.
    pub fn turn(&self) -> io::Result<()> {
        let mut ready = [EpollEvent::default(); 16];
        let count = match self.epoll.wait(-1, &mut ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        for event in ready.iter().take(count) {
            self.dispatch(event);
            if self.stopped.get() {
                break;
            }
        }
        Ok(())
    }

    fn dispatch(&self, event: &EpollEvent) {
        // An earlier handler of the same round may have removed it.
        let handler = self
            .entries
            .borrow()
            .get(&event.data())
            .map(|entry| Rc::clone(&entry.handler));
        if let Some(handler) = handler {
            (handler.borrow_mut())(event.event_set());
        }
    }
}

fn duplicate(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: the object that has this descriptor is borrowed, so it is open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()) }.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    #[test]
    fn a_cleared_loop_lets_go_of_what_its_handlers_hold() {
        let events = Rc::new(EventLoop::new().unwrap());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let (itself, held) = (Rc::clone(&events), Rc::new(()));
        let inner = Rc::clone(&held);
        let handler = move |_| {
            let _ = &inner;
            itself.stop();
        };
        events.add(&event, EventSet::IN, handler).unwrap();
        events.clear();
        assert_eq!((Rc::strong_count(&events), Rc::strong_count(&held)), (1, 1));
        // The loop can be used again.
        event.write(1).unwrap();
        let inner = Rc::clone(&events);
        events
            .add(&event, EventSet::IN, move |_| inner.stop())
            .unwrap();
        events.run().unwrap();
        events.clear();
    }

    #[test]
    fn handlers_add_and_remove_watches() {
        let events = Rc::new(EventLoop::new().unwrap());
        let [first, second] = [(); 2].map(|()| Rc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let calls = Rc::new(Cell::new(0));
        let own = Rc::new(Cell::new(None));
        let handler = {
            let (events, second) = (Rc::clone(&events), Rc::clone(&second));
            let (calls, own) = (Rc::clone(&calls), Rc::clone(&own));
            move |_| {
                calls.set(calls.get() + 1);
                events.remove(own.get().unwrap());
                let inner = Rc::clone(&events);
                events
                    .add(&*second, EventSet::IN, move |_| inner.stop())
                    .unwrap();
                second.write(1).unwrap();
            }
        };
        own.set(Some(events.add(&*first, EventSet::IN, handler).unwrap()));
        // Level-triggered and never read: only the removal keeps it from being called again.
        first.write(1).unwrap();
        events.run().unwrap();
        assert_eq!(calls.get(), 1);
    }
}
