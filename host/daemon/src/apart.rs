//! A process of its own for suspects: messages that a host held when it fell silent, any of which may be what killed it. When
//! such a process dies, that is evidence against the one message it ran, and no lane stops for it.
//!
//! The process is this program again. It is told a plugin once and then one message at a time over its standard input, answers on
//! its standard output, and ends when its input does. It has no Redis, no configuration and
//! no environment, and it locks itself in (`jail.rs`) before it reads the plugin.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use cofferdam_model::{Delivery, Event, Fault, Message, Outcome, ReasonCode, Route};
use cofferdam_sandbox::record::Calls;
use cofferdam_sandbox::{
    Artifact, Call, Digest, Engine, EngineConfig, Instances, Limits, LogLevel, LogLine, Plugin, PluginSpec, Report,
    Slot,
};
use serde::{Deserialize, Serialize};

use crate::frames::{read_frame, write_frame};
use crate::host::MEMORY_BYTES_MAX;
use crate::jail::{self, Bounds, Jailed, was_told_to_end};
use crate::version::Version;

/// How long a process may take to start and load its plugin, and how much longer than its deadline a message may.
const START_TIME: Duration = Duration::from_secs(60);
const ANSWER_SPARE: Duration = Duration::from_secs(10);
/// What the process may take beside the memory of its plugin: its code, the engine, the messages and answers under way.
const MEMORY_SPARE_BYTES: u64 = 1 << 30;

/// What the process is told of its plugin. Its compiled code follows in a frame of its own.
#[derive(Serialize, Deserialize)]
struct PluginFrame {
    name: String,
    digest: [u8; 32],
    reuse: bool,
    config: BTreeMap<String, String>,
    subscribe: Vec<String>,
    emit: Vec<String>,
    limits: Limits,
    /// Whether to tell which functions of the host it calls.
    recording: bool,
}

/// What the process says before the first message.
#[derive(Serialize, Deserialize)]
enum Started {
    /// It waits for messages; `notes` are what its jail lacks.
    Ready {
        notes: Vec<String>,
    },
    Failed {
        text: String,
    },
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
    calls: Calls,
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
    jailed: Jailed,
    /// The version that it was told, and the digest of its configuration.
    version: (String, String),
}

impl Apart {
    /// Runs one delivery there.
    ///
    /// # Errors
    /// [`Fault::ProcessDied`] when the process died with it; [`Fault::Host`] when there was none to be had, or somebody ended it.
    pub(crate) fn run(&self, version: &Version, delivery: &Delivery, started_ms: u64) -> Result<Report, Fault> {
        let mut place = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = (version.terms.stamp.digest.clone(), version.terms.stamp.config.clone());
        // One that died while it waited, by the hand of whoever, says nothing of the next message.
        let kept = place.take().filter(|process| process.version == wanted);
        let mut process = match kept.and_then(|mut process| process.jailed.lives().then_some(process)) {
            Some(process) => process,
            None => Process::start(version, wanted).map_err(|error| Fault::Host { text: format!("{error:#}") })?,
        };
        let attempt = delivery.attempt(&version.terms.forgiven);
        let jailed = &mut process.jailed;
        if let Err(error) = tell(jailed, &delivery.message, attempt, started_ms) {
            let text =
                format!("the process for suspects ended before it had the message: {}", jailed.last_words(&error));
            return Err(Fault::Host { text });
        }
        match hear(jailed, version.limits.deadline + ANSWER_SPARE) {
            Ok(report) => {
                *place = Some(process);
                Ok(report)
            }
            Err(error) => {
                let status = jailed.ended(&error);
                let text = status.map_or_else(|| error.to_string(), |status| status.to_string());
                match status.is_some_and(was_told_to_end) {
                    true => Err(Fault::Host { text: format!("somebody ended the process for suspects: {text}") }),
                    false => Err(Fault::ProcessDied { text }),
                }
            }
        }
    }
}

impl Process {
    fn start(version: &Version, key: (String, String)) -> anyhow::Result<Self> {
        let artifact = version.compiler.artifact(&version.wasm)?;
        let (jailed, notes) = begin(&plugin_frame(version), &artifact).context("the process for suspects")?;
        notes.iter().for_each(|note| tracing::warn!("a process for suspects: {note}"));
        Ok(Process { jailed, version: key })
    }
}

/// A process for code of which nothing is known but its bytes.
pub(crate) struct Stranger {
    jailed: Jailed,
    patience: Duration,
}

impl Stranger {
    /// Starts one whose events may go to `emit`. Gives back what its jail lacks, too.
    ///
    /// # Errors
    /// Why the code does not start.
    pub(crate) fn start(
        artifact: &Artifact,
        digest: Digest,
        limits: Limits,
        stream: &str,
        emit: &[String],
    ) -> anyhow::Result<(Self, Vec<String>)> {
        let frame = PluginFrame {
            name: String::from("stranger"),
            digest: *digest.as_bytes(),
            reuse: false,
            config: BTreeMap::new(),
            subscribe: vec![stream.to_owned()],
            emit: emit.to_vec(),
            limits,
            recording: true,
        };
        let (jailed, notes) = begin(&frame, artifact)?;
        Ok((Stranger { jailed, patience: limits.deadline + ANSWER_SPARE }, notes))
    }

    /// Runs one message.
    ///
    /// # Errors
    /// How the process died of it.
    pub(crate) fn ask(&mut self, message: &Message) -> Result<Report, String> {
        let told = tell(&mut self.jailed, message, 1, message.id.ms);
        told.and_then(|()| hear(&mut self.jailed, self.patience)).map_err(|error| self.jailed.last_words(&error))
    }
}

/// Starts a process and tells it a plugin; what its jail lacks.
fn begin(frame: &PluginFrame, artifact: &Artifact) -> anyhow::Result<(Jailed, Vec<String>)> {
    let memory_bytes = frame.limits.memory_bytes.saturating_add(MEMORY_SPARE_BYTES);
    let bounds = Bounds { memory_bytes, cpu: None };
    let mut jailed = Jailed::spawn("run-apart", &bounds).context("cannot start a process")?;
    let told = (|| -> io::Result<Vec<u8>> {
        jailed.write(&json(frame))?;
        jailed.write(artifact.bytes())?;
        jailed.read(START_TIME)
    })();
    let answer = match told {
        Ok(answer) => serde_json::from_slice(&answer)?,
        Err(error) => anyhow::bail!("it did not start: {}", jailed.last_words(&error)),
    };
    match answer {
        Started::Ready { notes } => Ok((jailed, notes)),
        Started::Failed { text } => anyhow::bail!("{text}"),
    }
}

/// Hands over a message. The process reads it whole before it runs any of it.
fn tell(jailed: &mut Jailed, message: &Message, attempt: u32, started_ms: u64) -> io::Result<()> {
    jailed.write(&json(&message_frame(message, attempt, started_ms)))
}

fn hear(jailed: &mut Jailed, patience: Duration) -> io::Result<Report> {
    let frame: ReportFrame = serde_json::from_slice(&jailed.read(patience)?)?;
    Ok(frame.into())
}

/// What `cofferdam run-apart` does: locks itself in and answers until its input ends.
pub(crate) fn serve(bounds: &Bounds) -> anyhow::Result<()> {
    // Made before the doors close: it opens the file by which the kernel tells of dirty pages.
    let engine = Engine::new(EngineConfig { instances_max: 2, memory_bytes_max: MEMORY_BYTES_MAX })?;
    let notes = jail::enter(bounds);
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let (Some(frame), Some(artifact)) = (read_frame(&mut input)?, read_frame(&mut input)?) else { return Ok(()) };
    let frame: PluginFrame = serde_json::from_slice(&frame)?;
    let plugin = match load(&engine, frame, Artifact::from_own_compiler(artifact)) {
        Ok(plugin) => plugin,
        Err(error) => {
            let text = format!("{error:#}");
            return Ok(write_frame(&mut output, &json(&Started::Failed { text }))?);
        }
    };
    write_frame(&mut output, &json(&Started::Ready { notes }))?;
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

fn load(engine: &Engine, frame: PluginFrame, artifact: Artifact) -> anyhow::Result<std::sync::Arc<Plugin>> {
    let spec = PluginSpec {
        name: frame.name,
        digest: Digest::from_bytes(frame.digest),
        limits: frame.limits,
        instances: if frame.reuse { Instances::Reuse } else { Instances::Fresh },
        config: frame.config,
        route: Route::new(frame.subscribe, frame.emit)?,
    };
    let plugin = Plugin::from_artifact(engine, &artifact, spec)?;
    Ok(std::sync::Arc::new(if frame.recording { plugin.recording() } else { plugin }))
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
        recording: false,
    }
}

fn message_frame(message: &Message, attempt: u32, started_ms: u64) -> MessageFrame {
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
        ReportFrame { result, took: report.took, memory_bytes: report.memory_bytes, log, calls: report.calls }
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
        Report { result, took: frame.took, memory_bytes: frame.memory_bytes, log, calls: frame.calls }
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
