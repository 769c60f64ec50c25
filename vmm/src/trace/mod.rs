//! Traces of NVMe commands: `berth run --trace FILE` writes them, `berth trace` reads them.
//!
//! # Format, version 1
//!
//! One JSON object a line. The first line is the header:
//!
//! ```json
//! {"berth_trace":1,"berth":"0.1.0","time":"2026-11-24T20:06:27.123456789Z","pid":4711,
//!  "controllers":[{"id":"c0","cntlid":0,"subsys":"s","addr":"0000:00:01.0"}],
//!  "namespaces":[{"id":"n1","subsys":"s","nsid":1,"block_size":512,"bytes":1073741824}]}
//! ```
//!
//! `berth_trace` is the version of the format, `time` the wall clock (UTC) when the trace began, and the lists
//! are what the machine had then. Every other line has `t`, nanoseconds since the trace began (monotonic), and
//! `event`:
//!
//! | event | what | fields |
//! |---|---|---|
//! | `controller` | the first time that a controller is met | `ctrl`, `cntlid`, `subsys` |
//! | `fetch` | a command was taken from its submission queue | `ctrl`, `sqid`, `cqid`, `cid`, `opc`, `op`, `nsid`, `bytes`, `prp1`, `prp2`, and what the command has |
//! | `complete` | its completion is posted | `ctrl`, `sqid`, `cqid`, `cid`, `opc`, `op`, `nsid`, `bytes`, `latency`, `status`; of an error `sct`, `sc`, `dnr`; `dw0` if it is not 0 |
//! | `abandon` | it ends without a completion: reset, shutdown, removal of the controller | as `complete`, without a status |
//! | `lost` | records that found no room in the memory set aside for them are missing here | `lost`, their number |
//! | `end` | the trace was ended in order | `records`, `lost`: totals |
//!
//! `ctrl` is the controller's id; `sqid` is 0 for admin commands. `op` and `status` are names of the
//! specification in small letters, or a number in hexadecimal if it is none that berth knows. `bytes` is what
//! the command asks to move or to zero; `latency` is in nanoseconds since the command was fetched. Of the
//! fields of commands `slba` and `nlb` (blocks, from 1) are those of reads, writes and write-zeroes, `ranges` of
//! dataset-management; an admin command has `cdw10`, `cdw11`, `cdw12`, and by what it is `qid`, `entries`,
//! `feeds`, `vector`, `fid`, `lid`, `cns`, `abort_sqid`, `abort_cid`. Guest physical addresses and dwords are
//! strings in hexadecimal. Readers leave out fields and events that they do not know; those that are here stay
//! in later versions of the number 1.
//!
//! Lines are in order of time for each queue, whichever threads it was on; between queues one may come late,
//! by as long as its thread was kept from recording it. A trace whose last line is no `end` was cut: berth was killed, or the file could not take more.

pub mod command;
mod histogram;
mod line;
mod plot;
mod read;
mod sink;
mod summary;
mod svg;
#[cfg(test)]
mod tests;
mod writer;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use devices::nvme::trace::Tracer;
use devices::pci::root::bdf;
use serde_json::{Value, json};

use crate::control::command::{CommandError, ErrorClass};
use crate::registry::{Object, Registry};
use writer::Writer;

/// The version of the format.
pub const VERSION: u64 = 1;

/// How long a FIFO's reader may take to come when berth starts.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// How long the end of a run waits for the last lines.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// How long `trace off` waits for them: the main loop waits with it.
const OFF_PATIENCE: Duration = Duration::from_millis(500);

/// Why there is no trace. Starts with the option or command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{argument} {}: {problem}", path.display())]
pub struct TraceError {
    /// The option or command that asked for it.
    argument: &'static str,
    /// The file.
    path: PathBuf,
    /// What is wrong, and what would be right.
    problem: String,
}

/// The trace of a machine, which can be turned on and off.
#[derive(Default)]
pub struct Tracing(RefCell<Option<Trace>>);

struct Trace {
    tracer: Arc<Tracer>,
    writer: Writer,
}

impl Tracing {
    /// Begins the trace that the command line asks for.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn start(&self, path: &Path, registry: &Registry) -> Result<(), TraceError> {
        self.begin("--trace", path, START_PATIENCE, registry)
    }

    /// Begins a trace of a machine that runs.
    ///
    /// # Errors
    /// There is one already, or the file cannot be opened.
    pub fn on(&self, path: &Path, registry: &Registry) -> Result<Value, CommandError> {
        if let Some(trace) = &*self.0.borrow()
            && !trace.writer.is_done()
        {
            let file = trace.writer.path().display();
            let why =
                format!("trace on: the machine is traced to {file}; end that with: trace off");
            return Err(CommandError::new(ErrorClass::InUse, why));
        }
        self.begin("trace on", path, Duration::ZERO, registry)
            .map_err(|error| CommandError::new(ErrorClass::Failed, error.to_string()))?;
        Ok(json!({ "file": path.display().to_string() }))
    }

    /// Ends the trace of a machine that runs.
    ///
    /// # Errors
    /// There is none.
    pub fn off(&self, registry: &Registry) -> Result<Value, CommandError> {
        let Some(trace) = self.0.take() else {
            let why = "trace off: the machine is not traced";
            return Err(CommandError::new(ErrorClass::NotFound, why));
        };
        registry.set_trace(None);
        trace.stop();
        // A writer that takes longer ends by itself.
        let complete = trace.writer.wait(OFF_PATIENCE);
        let mut reply = trace.writer.info();
        reply["complete"] = complete.into();
        Ok(reply)
    }

    fn begin(
        &self,
        argument: &'static str,
        path: &Path,
        patience: Duration,
        registry: &Registry,
    ) -> Result<(), TraceError> {
        let refused = |problem| TraceError {
            argument,
            path: path.into(),
            problem,
        };
        let sink = sink::Sink::open(path, patience).map_err(refused)?;
        let no_thread = |error: std::io::Error| refused(crate::control::plain(&error));
        let (tracer, reader) = Tracer::begin().map_err(no_thread)?;
        let header = header(registry);
        let writer =
            Writer::start(argument, path, sink, &header, reader, &tracer).map_err(no_thread)?;
        registry.set_trace(Some(&tracer));
        *self.0.borrow_mut() = Some(Trace { tracer, writer });
        Ok(())
    }

    /// What `info stats` tells: nothing if the machine is not traced.
    pub fn info(&self) -> Value {
        let trace = self.0.borrow();
        trace
            .as_ref()
            .map_or(Value::Null, |trace| trace.writer.info())
    }

    /// Brings the last lines to the file, at the end of the run.
    pub fn finish(&self) {
        if let Some(trace) = self.0.take() {
            trace.stop();
            if !trace.writer.wait(END_PATIENCE) {
                let name = trace.writer.name();
                tracing::warn!("{name}: its last lines could not be written in time");
            }
        }
    }
}

impl Trace {
    fn stop(&self) {
        self.writer.stop();
        self.tracer.wake();
    }
}

/// The first line.
fn header(registry: &Registry) -> Value {
    let (mut controllers, mut namespaces) = (Vec::new(), Vec::new());
    for (id, object) in registry.iter() {
        match object {
            Object::Controller {
                controller,
                subsystem,
                slot,
                ..
            } => controllers.push(json!({
                "id": id,
                "cntlid": controller.cntlid(),
                "subsys": subsystem.id(),
                "addr": bdf(*slot),
            })),
            Object::Namespace {
                namespace,
                subsystem,
            } => namespaces.push(json!({
                "id": id,
                "subsys": subsystem.id(),
                "nsid": namespace.nsid(),
                "block_size": 1u64 << namespace.block_shift(),
                "bytes": namespace.bytes(),
            })),
            Object::Subsystem(_) => {}
        }
    }
    json!({
        "berth": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "controllers": controllers,
        "namespaces": namespaces,
    })
}
