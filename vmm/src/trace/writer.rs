//! The thread that writes a trace.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use devices::nvme::trace::{TraceReader, Traced, Tracer};
use serde_json::{Value, json};

use super::line::{Lines, utc};
use super::sink::Sink;
use crate::control::plain;

/// Bytes of lines that go to the file at once.
const BUFFER: usize = 256 << 10;
/// How long lines wait for more of them.
const INTERVAL: Duration = Duration::from_millis(100);

/// What others see of the thread.
#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    // Of records, not of lines.
    written: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    end: Mutex<Option<End>>,
    ended: Condvar,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Complete,
    Failed(String),
}

/// Handle of the thread. It goes on until it is stopped, or cannot write.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    // What messages begin with.
    name: String,
    shared: Arc<Shared>,
}

impl Writer {
    /// Starts the thread, which writes what `reader` reads to `sink`, `header` first. Messages begin with
    /// `argument`, which asked for it, and `path`.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn start(
        argument: &str,
        path: &Path,
        sink: Sink,
        header: &Value,
        reader: TraceReader,
        tracer: &Arc<Tracer>,
    ) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let mut header = header.clone();
        // As near as can be to the time that is 0 in the trace.
        let age = Duration::from_nanos(tracer.now());
        let now = SystemTime::now();
        header["time"] = utc(now.checked_sub(age).unwrap_or(now)).into();
        let mut thread = Thread {
            shared: Arc::clone(&shared),
            lines: Lines::new(&header, tracer),
            out: Out {
                sink,
                shared: Arc::clone(&shared),
            },
        };
        let name = format!("{argument} {}", path.display());
        let told = name.clone();
        thread::Builder::new().name("trace".into()).spawn(move || {
            let end = thread.run(reader);
            thread.report(&told, &end);
            *thread.shared.lock_end() = Some(end);
            thread.shared.ended.notify_all();
        })?;
        let path = path.into();
        Ok(Self { path, name, shared })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who asked for it, and the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has the thread end, once it is woken.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// Whether it has ended.
    pub fn is_done(&self) -> bool {
        self.shared.lock_end().is_some()
    }

    /// Waits for its end for at most `limit`; whether it came.
    pub fn wait(&self, limit: Duration) -> bool {
        let end = self.shared.lock_end();
        let (end, _) = self
            .shared
            .ended
            .wait_timeout_while(end, limit, |end| end.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        end.is_some()
    }

    /// Its counters.
    pub fn info(&self) -> Value {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let end = self.shared.lock_end().clone();
        let state = match &end {
            None => "running",
            Some(End::Complete) => "complete",
            Some(End::Failed(_)) => "failed",
        };
        let mut info = json!({
            "file": self.path.display().to_string(),
            "state": state,
            "records": get(&self.shared.written),
            "bytes": get(&self.shared.bytes),
            "lost": get(&self.shared.lost),
        });
        if let Some(End::Failed(why)) = end {
            info["error"] = why.into();
        }
        info
    }
}

impl Shared {
    fn lock_end(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// The file with what was written to it.
struct Out {
    sink: Sink,
    shared: Arc<Shared>,
}

impl Out {
    fn flush(&mut self, lines: &mut Lines) -> io::Result<()> {
        let bytes = lines.bytes();
        let shared = &self.shared;
        self.sink.write_all(bytes, || shared.is_stopping())?;
        let count = |counter: &AtomicU64, more| counter.fetch_add(more, Ordering::Relaxed);
        count(&shared.bytes, bytes.len() as u64);
        count(&shared.written, lines.records());
        lines.clear();
        Ok(())
    }
}

struct Thread {
    shared: Arc<Shared>,
    lines: Lines,
    out: Out,
}

impl Thread {
    fn run(&mut self, reader: TraceReader) -> End {
        match self.write(reader) {
            Ok(()) => End::Complete,
            Err(error) => End::Failed(plain(&error)),
        }
    }

    fn write(&mut self, mut reader: TraceReader) -> io::Result<()> {
        self.out.flush(&mut self.lines)?;
        loop {
            // Asked first: what was recorded before is read behind it.
            let stopping = self.shared.is_stopping();
            reader.read(|traced| self.take(traced))?;
            self.out.flush(&mut self.lines)?;
            if stopping {
                break;
            }
            reader.wait(INTERVAL);
        }
        reader.finish(|traced| self.take(traced))?;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let records = get(&self.shared.written) + self.lines.records();
        self.lines.end(records, get(&self.shared.lost));
        self.out.flush(&mut self.lines)
    }

    fn take(&mut self, traced: Traced) -> io::Result<()> {
        match traced {
            Traced::Record(record) => self.lines.record(&record),
            Traced::Lost(count) => {
                self.lines.lost(count);
                self.shared.lost.fetch_add(count.into(), Ordering::Relaxed);
            }
        }
        if self.lines.bytes().len() >= BUFFER {
            self.out.flush(&mut self.lines)?;
        }
        Ok(())
    }

    /// Tells on standard error what the file does not have.
    fn report(&self, name: &str, end: &End) {
        let written = self.shared.written.load(Ordering::Relaxed);
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if let End::Failed(why) = end {
            tracing::warn!(
                "{name}: {why}: the trace ends after about {written} records; the guest goes on"
            );
        }
        if lost > 0 {
            tracing::warn!(
                "{name}: {lost} records of {} are missing, for they came faster than they \
                 could be written; the trace has lines \"lost\" where they were",
                lost + written
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::nvme::trace::{Record, TraceEvent, TracedCommand};

    use super::*;

    #[test]
    fn records_count_when_they_are_written() {
        let (tracer, _reader) = Tracer::begin().unwrap();
        let command = TracedCommand {
            controller: 1,
            sqid: 1,
            cqid: 1,
            cid: 1,
            opcode: 2,
            nsid: 1,
            bytes: 0,
        };
        let record = Record::new(1, command, TraceEvent::Abandoned { latency: 1 });
        let file = tempfile::NamedTempFile::new().unwrap();
        for (path, written) in [(file.path(), 2), (Path::new("/dev/full"), 0)] {
            let mut lines = Lines::new(&json!({}), &tracer);
            lines.record(&record);
            lines.record(&record);
            let shared = Arc::<Shared>::default();
            let mut out = Out {
                sink: Sink::open(path, Duration::ZERO).unwrap(),
                shared: Arc::clone(&shared),
            };
            assert_eq!(out.flush(&mut lines).is_ok(), written > 0);
            assert_eq!(shared.written.load(Ordering::Relaxed), written);
        }
    }
}
