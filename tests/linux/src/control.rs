//! A client of a guest's control socket that stays connected.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long berth waits for a removal, the guest's part in it included.
const REMOVAL_SECONDS: u64 = 60;

/// Longest time for a reply.
const LIMIT: Duration = Duration::from_secs(2 * REMOVAL_SECONDS);

/// A connection.
pub struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        stream.set_read_timeout(Some(LIMIT))?;
        let stream = BufReader::new(stream);
        Ok(Self { stream })
    }

    /// Sends a command and returns its result.
    ///
    /// # Errors
    /// When berth refuses, or does not answer.
    pub fn ask(&mut self, command: &str) -> Result<Value> {
        writeln!(self.stream.get_mut(), "{command}")?;
        loop {
            let mut line = self.line().context(command.to_owned())?;
            match line.get("ok") {
                // An event.
                None => {}
                Some(Value::Bool(true)) => return Ok(line["result"].take()),
                Some(_) => bail!("{command}: {}", line["error"]["message"]),
            }
        }
    }

    /// Removes a device and waits until it is gone.
    ///
    /// # Errors
    /// When berth refuses, or it does not go.
    pub fn remove(&mut self, id: &str) -> Result<()> {
        self.ask(&format!("device_del {id} wait={REMOVAL_SECONDS}"))?;
        Ok(())
    }

    /// Pulls a controller and waits until it is gone.
    ///
    /// # Errors
    /// When berth refuses, or it does not go.
    pub fn pull(&mut self, id: &str) -> Result<()> {
        self.ask(&format!("device_del {id} surprise wait={REMOVAL_SECONDS}"))?;
        Ok(())
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        read.with_context(|| format!("nothing heard within {LIMIT:?}"))?;
        ensure!(!line.is_empty(), "berth closed the control socket");
        serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))
    }
}
