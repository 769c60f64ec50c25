//! How many queues each I/O thread has, where a new one goes, and when one should move.
//!
//! Used by the admin queues' owners alone, never per command.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::super::core::Core;

/// The queues of an I/O thread, over all controllers that share it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Completion queues.
    pub cqs: u32,
    /// Submission queues.
    pub sqs: u32,
}

impl Load {
    /// What threads are compared by.
    fn queues(self) -> u32 {
        self.cqs + self.sqs
    }
}

/// The loads of all threads.
#[derive(Debug)]
pub struct Balance {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    loads: Vec<Load>,
    // How many of the threads, from the first, get queues.
    used: usize,
    // Counts queues that came or went.
    version: u64,
    // Counts changes of any load.
    changes: u64,
    // Controllers that have queues on these threads or may get some.
    users: Vec<Weak<Core>>,
}

impl State {
    /// The thread with the fewest queues, the first of several.
    fn idlest(&self) -> usize {
        let loads = self.loads[..self.used].iter().enumerate();
        loads
            .min_by_key(|(_, load)| load.queues())
            .map_or(0, |(index, _)| index)
    }

    /// The thread that `seat` should move to, and by how many queues the two threads are nearer to
    /// each other then. The gap becomes smaller with every move, so moves come to an end: nothing is
    /// moved back and forth.
    fn better(&self, seat: &Seat) -> Option<(usize, u32)> {
        let to = self.idlest();
        let gap = self.loads[seat.thread]
            .queues()
            .checked_sub(self.loads[to].queues())?;
        let left = gap.abs_diff(2 * seat.load.queues());
        (left < gap).then(|| (to, gap - left))
    }

    /// Whether some thread has two queues more than another.
    fn is_uneven(&self) -> bool {
        let used = &self.loads[..self.used];
        let queues = || used.iter().map(|load| load.queues());
        let least = queues().min().unwrap_or(0);
        queues().max().is_some_and(|most| most >= least + 2)
    }

    fn add(&mut self, thread: usize, load: Load) {
        self.changes += 1;
        self.loads[thread].cqs += load.cqs;
        self.loads[thread].sqs += load.sqs;
    }

    fn subtract(&mut self, thread: usize, load: Load) {
        self.changes += 1;
        self.loads[thread].cqs -= load.cqs;
        self.loads[thread].sqs -= load.sqs;
    }
}

impl Balance {
    /// For `threads` threads (at least one) without queues, of which the first `used` are to get any.
    pub fn new(threads: usize, used: usize) -> Self {
        let threads = threads.max(1);
        let state = State {
            loads: vec![Load::default(); threads],
            used: used.clamp(1, threads),
            version: 0,
            changes: 0,
            users: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// Has the controller look for a queue to move whenever the threads' loads drift apart.
    pub fn add_user(&self, core: &Arc<Core>) {
        let mut state = self.lock();
        state.users.retain(|user| user.strong_count() > 0);
        state.users.push(Arc::downgrade(core));
    }

    /// A place for a new completion queue, on the thread with the fewest queues.
    pub fn seat(self: &Arc<Self>) -> Seat {
        let load = Load { cqs: 1, sqs: 0 };
        let thread = self.change(|state| {
            let thread = state.idlest();
            state.add(thread, load);
            thread
        });
        Seat {
            balance: Arc::clone(self),
            thread,
            load,
        }
    }

    /// The loads of the threads.
    pub fn loads(&self) -> Vec<Load> {
        self.lock().loads.clone()
    }

    /// Changes whenever queues came or went; not when they moved.
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// Changes with every load.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Queues came or went. Those who may have something to move now are told.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        state.version += 1;
        Self::tell(state);
        result
    }

    fn tell(state: MutexGuard<'_, State>) {
        if !state.is_uneven() {
            return;
        }
        let users: Vec<_> = state.users.iter().filter_map(Weak::upgrade).collect();
        // What the last of them lets go of is not let go of under the lock.
        drop(state);
        users.iter().for_each(|core| core.wake());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a completion queue and its submission queues on a thread: they count there until this
/// is dropped, whatever the reason.
#[derive(Debug)]
pub struct Seat {
    balance: Arc<Balance>,
    thread: usize,
    load: Load,
}

impl Seat {
    /// Index of the thread.
    pub fn thread(&self) -> usize {
        self.thread
    }

    /// One submission queue more.
    pub fn add_sq(&mut self) {
        let sq = Load { cqs: 0, sqs: 1 };
        self.load.sqs += 1;
        self.balance.change(|state| state.add(self.thread, sq));
    }

    /// One submission queue less.
    pub fn remove_sq(&mut self) {
        let sq = Load { cqs: 0, sqs: 1 };
        self.load.sqs -= 1;
        self.balance.change(|state| state.subtract(self.thread, sq));
    }

    /// How much nearer the loads of two threads would be if this moved, in queues; 0 if it should not.
    pub fn gain(&self) -> u32 {
        self.balance.lock().better(self).map_or(0, |(_, gain)| gain)
    }

    /// Counts on the thread that it should move to from now on, if there is one.
    pub fn advance(&mut self) -> Option<usize> {
        let mut state = self.balance.lock();
        let (to, _) = state.better(self)?;
        state.subtract(self.thread, self.load);
        state.add(to, self.load);
        self.thread = to;
        Some(to)
    }

    /// Counts on `thread`, where its queues have stayed, again. Other controllers may have something
    /// to move instead.
    pub fn go_back(&mut self, thread: usize) {
        let mut state = self.balance.lock();
        state.subtract(self.thread, self.load);
        state.add(thread, self.load);
        self.thread = thread;
        Balance::tell(state);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.balance
            .change(|state| state.subtract(self.thread, self.load));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(balance: &Balance) -> Vec<u32> {
        balance.loads().into_iter().map(Load::queues).collect()
    }

    #[test]
    fn a_queue_goes_to_the_thread_with_the_fewest_and_the_first_of_these() {
        let balance = Arc::new(Balance::new(3, 3));
        let mut seats: Vec<_> = (0..4).map(|_| balance.seat()).collect();
        let threads: Vec<_> = seats.iter().map(Seat::thread).collect();
        assert_eq!(threads, [0, 1, 2, 0]);
        seats[1].add_sq();
        seats[1].add_sq();
        assert_eq!(queues(&balance), [2, 3, 1]);
        seats.push(balance.seat());
        seats.push(balance.seat());
        assert_eq!((seats[4].thread(), seats[5].thread()), (2, 0));
        seats[1].remove_sq();
        drop(seats.remove(0));
        assert_eq!(queues(&balance), [2, 2, 2]);
        drop(seats);
        assert_eq!(balance.loads(), [Load::default(); 3]);
    }

    #[test]
    fn a_queue_moves_only_if_the_threads_are_more_alike_then() {
        let balance = Arc::new(Balance::new(2, 2));
        let mut seats: Vec<_> = (0..4).map(|_| balance.seat()).collect();
        seats[0].add_sq();
        seats[0].add_sq();
        // 4 and 2: the large one would only be as far ahead on the other side.
        assert_eq!((seats[0].gain(), seats[1].gain()), (0, 0));
        assert_eq!(seats[0].advance(), None);
        assert_eq!(seats[2].gain(), 2);
        assert_eq!(seats[2].advance(), Some(1));
        assert_eq!(queues(&balance), [3, 3]);
        assert!(seats.iter_mut().all(|seat| seat.advance().is_none()));
        seats[2].go_back(0);
        assert_eq!(queues(&balance), [4, 2]);
        drop(seats);
        assert_eq!(balance.loads(), [Load::default(); 2]);
    }

    #[test]
    fn moves_come_to_an_end() {
        let balance = Arc::new(Balance::new(4, 4));
        let mut seats: Vec<_> = (0..40).map(|_| balance.seat()).collect();
        for (index, seat) in seats.iter_mut().enumerate() {
            (0..index % 5).for_each(|_| seat.add_sq());
        }
        let mut index = 0;
        seats.retain(|_| {
            index += 1;
            index % 4 != 1 && index % 4 != 2
        });
        let mut moves = 0;
        while seats.iter_mut().any(|seat| seat.advance().is_some()) {
            moves += 1;
            assert!(moves < 1000);
        }
        let queues = queues(&balance);
        let (least, most) = (queues.iter().min().unwrap(), queues.iter().max().unwrap());
        assert!(moves > 0 && most - least <= 5, "{queues:?}");
    }

    #[test]
    fn threads_that_are_not_to_be_used_get_nothing() {
        let balance = Arc::new(Balance::new(4, 2));
        let mut seats: Vec<_> = (0..6).map(|_| balance.seat()).collect();
        assert_eq!(queues(&balance), [3, 3, 0, 0]);
        assert!(seats.iter_mut().all(|seat| seat.advance().is_none()));
        assert!(!balance.lock().is_uneven());
        for (used, expected) in [(0, 1), (9, 4)] {
            assert_eq!(Balance::new(4, used).lock().used, expected);
        }
    }

    #[test]
    fn one_thread_moves_nothing() {
        let balance = Arc::new(Balance::new(1, 1));
        let mut seats: Vec<_> = (0..4).map(|_| balance.seat()).collect();
        assert!(seats.iter_mut().all(|seat| seat.advance().is_none()));
    }
}
