//! A process of its own for suspects: messages that a host held when it fell silent, any of which may be what killed it. When
//! such a process dies, that is evidence against the one message it ran, and no lane stops for it.
//!
//! The process is this program again. It is told a plugin once and then one message at a time over its standard input, answers on
//! its standard output, and ends when its input does. It has no Redis, no configuration and no environment.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use cofferdam_model::{Delivery, Event, Fault, Message, Outcome, ReasonCode, Route};
use cofferdam_sandbox::{
    Call, Digest, Engine, EngineConfig, Instances, Limits, LogLevel, LogLine, Plugin, PluginSpec, Report, Slot,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};

use crate::version::Version;

/// How long a process may take to start and compile its plugin, and how much longer than its deadline a message may.
const COMPILE_TIME: Duration = Duration::from_secs(120);
const ANSWER_SPARE: Duration = Duration::from_secs(10);
/// The largest frame: a message or an answer at the largest limits, as JSON, which escapes.
const FRAME_BYTES_MAX: usize = 512 << 20;

/// What the process is told of its plugin. The wasm itself follows in a frame of its own.
#[derive(Serialize, Deserialize)]
struct PluginFrame {
    name: String,
    digest: [u8; 32],
    reuse: bool,
    config: BTreeMap<String, String>,
    subscribe: Vec<String>,
    emit: Vec<String>,
    limits: Limits,
}

#[derive(Serialize, Deserialize)]
struct MessageFrame {
    id: String,
    message_id: String,
    stream: String,
    payload: String,
    priority: u8,
    timestamp: String,
    producer_id: String,
    key: Option<String>,
    attributes: Vec<(String, String)>,
    attempt: u32,
    started_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct ReportFrame {
    result: ResultFrame,
    took: Duration,
    memory_bytes: u64,
    log: Vec<(u8, String)>,
}

#[derive(Serialize, Deserialize)]
enum ResultFrame {
    Events(Vec<EventFrame>),
    Retry { reason: String, after: Option<Duration> },
    Reject { reason: String },
    Trap { text: String, backtrace: String },
    Deadline { deadline: Duration },
    Memory { limit_bytes: u64, text: String },
    Limit { code: String, text: String, backtrace: String },
    BadOutput { code: String, text: String },
    Host { text: String },
}

#[derive(Serialize, Deserialize)]
struct EventFrame {
    stream: String,
    payload: String,
    priority: Option<u8>,
    key: Option<String>,
    attributes: Vec<(String, String)>,
}

/// The process that suspects of one plugin run in; started when there is one.
#[derive(Default)]
pub(crate) struct Apart {
    process: Mutex<Option<Process>>,
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// The version that it was told, and the digest of its configuration.
    version: (String, String),
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Apart {
    /// Runs one delivery there.
    ///
    /// # Errors
    /// [`Fault::ProcessDied`] when the process died with it; [`Fault::Host`] when there was none to be had.
    pub(crate) fn run(&self, version: &Version, delivery: &Delivery, started_ms: u64) -> Result<Report, Fault> {
        let mut place = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = (version.terms.stamp.digest.clone(), version.terms.stamp.config.clone());
        let mut process = match place.take().filter(|process| process.version == wanted) {
            Some(process) => process,
            None => Process::start(version, wanted).map_err(|error| Fault::Host { text: format!("{error:#}") })?,
        };
        let attempt = delivery.attempt(&version.terms.forgiven);
        let answered = process.ask(delivery, attempt, started_ms, version.limits.deadline + ANSWER_SPARE);
        match answered {
            Ok(report) => {
                *place = Some(process);
                Ok(report)
            }
            Err(error) => Err(Fault::ProcessDied { text: process.last_words(&error) }),
        }
    }
}

impl Process {
    fn start(version: &Version, key: (String, String)) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut child = Command::new(program)
            .arg("run-apart")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process for a suspect")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            anyhow::bail!("a process without its pipes");
        };
        let mut process = Process { child, stdin, stdout: BufReader::new(stdout), version: key };
        let told = (|| -> io::Result<Vec<u8>> {
            write_frame(&mut process.stdin, &json(&plugin_frame(version)))?;
            write_frame(&mut process.stdin, &version.wasm)?;
            process.read(COMPILE_TIME)
        })();
        match told {
            Ok(answer) if answer.is_empty() => Ok(process),
            Ok(answer) => anyhow::bail!("the process for suspects: {}", String::from_utf8_lossy(&answer)),
            Err(error) => anyhow::bail!("the process for suspects did not start: {}", process.last_words(&error)),
        }
    }

    fn ask(&mut self, delivery: &Delivery, attempt: u32, started_ms: u64, patience: Duration) -> io::Result<Report> {
        write_frame(&mut self.stdin, &json(&message_frame(delivery, attempt, started_ms)))?;
        let answer = self.read(patience)?;
        let frame: ReportFrame = serde_json::from_slice(&answer)?;
        Ok(frame.into())
    }

    fn read(&mut self, patience: Duration) -> io::Result<Vec<u8>> {
        // Nothing is buffered between answers, so that the pipe tells whether one has begun.
        let timeout = Timespec { tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
        let mut pipes = [PollFd::from_borrowed_fd(self.stdout.get_ref().as_fd(), PollFlags::IN)];
        if rustix::event::poll(&mut pipes, Some(&timeout))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}")));
        }
        read_frame(&mut self.stdout)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// How it ended.
    fn last_words(&mut self, error: &io::Error) -> String {
        if error.kind() == io::ErrorKind::TimedOut {
            return error.to_string();
        }
        // Its pipe is closed, so it is ending or has ended.
        match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(_) => error.to_string(),
        }
    }
}

/// What `cofferdam run-apart` does: answers until its input ends.
pub(crate) fn serve() -> anyhow::Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let (Some(frame), Some(wasm)) = (read_frame(&mut input)?, read_frame(&mut input)?) else { return Ok(()) };
    let frame: PluginFrame = serde_json::from_slice(&frame)?;
    let plugin = match load(frame, &wasm) {
        Ok(plugin) => plugin,
        Err(error) => return Ok(write_frame(&mut output, format!("{error:#}").as_bytes())?),
    };
    write_frame(&mut output, b"")?;
    let mut slot = Slot::default();
    while let Some(frame) = read_frame(&mut input)? {
        let frame: MessageFrame = serde_json::from_slice(&frame)?;
        let (attempt, started_ms) = (frame.attempt, frame.started_ms);
        let message: Message = frame.try_into()?;
        crate::runner::die_if_told(&message);
        let report = cofferdam_sandbox::invoke(&plugin, &mut slot, &Call { message: &message, attempt, started_ms });
        write_frame(&mut output, &json(&ReportFrame::from(report)))?;
    }
    Ok(())
}

fn load(frame: PluginFrame, wasm: &[u8]) -> anyhow::Result<std::sync::Arc<Plugin>> {
    let engine =
        Engine::new(EngineConfig { instances_max: 2, memory_bytes_max: frame.limits.memory_bytes.max(1 << 20) })?;
    let spec = PluginSpec {
        name: frame.name,
        digest: Digest::from_bytes(frame.digest),
        limits: frame.limits,
        instances: if frame.reuse { Instances::Reuse } else { Instances::Fresh },
        config: frame.config,
        route: Route::new(frame.subscribe, frame.emit)?,
    };
    Ok(std::sync::Arc::new(Plugin::load(&engine, wasm, spec)?))
}

fn plugin_frame(version: &Version) -> PluginFrame {
    let spec = version.plugin.spec();
    PluginFrame {
        name: spec.name.clone(),
        digest: *spec.digest.as_bytes(),
        reuse: spec.instances == Instances::Reuse,
        config: spec.config.clone(),
        subscribe: spec.route.subscribe().to_vec(),
        emit: spec.route.emit().to_vec(),
        limits: version.limits,
    }
}

fn message_frame(delivery: &Delivery, attempt: u32, started_ms: u64) -> MessageFrame {
    let message = &delivery.message;
    MessageFrame {
        id: message.id.to_string(),
        message_id: message.message_id.clone(),
        stream: message.stream.to_string(),
        payload: message.payload.clone(),
        priority: message.priority,
        timestamp: message.timestamp.clone(),
        producer_id: message.producer_id.clone(),
        key: message.key.clone(),
        attributes: message.attributes.clone(),
        attempt,
        started_ms,
    }
}

impl TryFrom<MessageFrame> for Message {
    type Error = anyhow::Error;

    fn try_from(frame: MessageFrame) -> Result<Self, Self::Error> {
        Ok(Message {
            id: frame.id.parse().map_err(|_| anyhow::anyhow!("{:?} is no entry id", frame.id))?,
            message_id: frame.message_id,
            stream: frame.stream.into(),
            payload: frame.payload,
            priority: frame.priority,
            timestamp: frame.timestamp,
            producer_id: frame.producer_id,
            key: frame.key,
            attributes: frame.attributes,
        })
    }
}

impl From<Report> for ReportFrame {
    fn from(report: Report) -> Self {
        let result = match report.result {
            Ok(Outcome::Events(events)) => ResultFrame::Events(events.into_iter().map(EventFrame::from).collect()),
            Ok(Outcome::Retry { reason, after }) => ResultFrame::Retry { reason, after },
            Ok(Outcome::Reject { reason }) => ResultFrame::Reject { reason },
            Err(Fault::Trap { text, backtrace }) => ResultFrame::Trap { text, backtrace },
            Err(Fault::Deadline { deadline }) => ResultFrame::Deadline { deadline },
            Err(Fault::Memory { limit_bytes, text }) => ResultFrame::Memory { limit_bytes, text },
            Err(Fault::Limit { code, text, backtrace }) => {
                ResultFrame::Limit { code: code.to_string(), text, backtrace }
            }
            Err(Fault::BadOutput { code, text }) => ResultFrame::BadOutput { code: code.to_string(), text },
            // A call gives none of the others: they are known before it, or are about it.
            Err(other) => ResultFrame::Host { text: other.to_string() },
        };
        let log = report.log.into_iter().map(|line| (line.level as u8, line.line)).collect();
        ReportFrame { result, took: report.took, memory_bytes: report.memory_bytes, log }
    }
}

impl From<ReportFrame> for Report {
    fn from(frame: ReportFrame) -> Self {
        let result = match frame.result {
            ResultFrame::Events(events) => Ok(Outcome::Events(events.into_iter().map(Event::from).collect())),
            ResultFrame::Retry { reason, after } => Ok(Outcome::Retry { reason, after }),
            ResultFrame::Reject { reason } => Ok(Outcome::Reject { reason }),
            ResultFrame::Trap { text, backtrace } => Err(Fault::Trap { text, backtrace }),
            ResultFrame::Deadline { deadline } => Err(Fault::Deadline { deadline }),
            ResultFrame::Memory { limit_bytes, text } => Err(Fault::Memory { limit_bytes, text }),
            ResultFrame::Limit { code, text, backtrace } => {
                Err(Fault::Limit { code: code.parse().unwrap_or(ReasonCode::Trap), text, backtrace })
            }
            ResultFrame::BadOutput { code, text } => {
                Err(Fault::BadOutput { code: code.parse().unwrap_or(ReasonCode::BadOutput), text })
            }
            ResultFrame::Host { text } => Err(Fault::Host { text }),
        };
        let level = |level| match level {
            0 => LogLevel::Debug,
            1 => LogLevel::Info,
            2 => LogLevel::Warn,
            _ => LogLevel::Error,
        };
        let log = frame.log.into_iter().map(|(number, line)| LogLine { level: level(number), line }).collect();
        Report { result, took: frame.took, memory_bytes: frame.memory_bytes, log }
    }
}

impl From<Event> for EventFrame {
    fn from(event: Event) -> Self {
        let Event { stream, payload, priority, key, attributes } = event;
        EventFrame { stream, payload, priority, key, attributes }
    }
}

impl From<EventFrame> for Event {
    fn from(frame: EventFrame) -> Self {
        let EventFrame { stream, payload, priority, key, attributes } = frame;
        Event { stream, payload, priority, key, attributes }
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers always serialize")
}

/// A frame: its length in four bytes, and its bytes.
fn write_frame(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)?;
    to.flush()
}

/// The next frame; `None` at the end of the input.
fn read_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0u8; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}
