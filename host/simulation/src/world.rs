//! The world that a seed runs in: one server (the model) behind a network that can lose, delay and cut, simulated time, and a
//! list of what was published and what may rightly be missing of it.
//!
//! Time is tokio's paused clock: when nothing can go on, it jumps to the next timer. One thread, no chance but the seed's, so a
//! seed gives the same run each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use cofferdam_model::EntryId;
use cofferdam_streams::{Link, Opening, Server};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redis::{Arg, Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::check::Violation;
use crate::scenario::Message;
use crate::{Leases, Model};

/// The stream that everything is published on.
pub const INPUT: &str = "stream:in";
/// The streams that handlers write to.
pub const OUTPUTS: [&str; 2] = ["stream:a", "stream:b"];
/// A key that is no stream.
pub const WRONG: &str = "stream:wrong";
/// What the server's clock shows when a run begins.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// How long a client waits for a reply: more than any delay that is not a fault.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// What was published, and what an operator's hand or a rewound history allows to be missing or repeated.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// By id.
    pub entries: BTreeMap<EntryId, Message>,
    /// (plugin, entry) that may have come to nothing: somebody took it away before anybody could have it.
    pub may_be_missing: BTreeSet<(usize, EntryId)>,
    /// Entries that may end as a `payload-trimmed` dead letter.
    pub may_be_trimmed: BTreeSet<EntryId>,
    /// (plugin, entry) whose effects may be there twice: their group was destroyed.
    pub may_repeat: BTreeSet<(usize, EntryId)>,
}

/// A network's trouble for one host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// Chance that a request is lost, in percent.
    pub lose_requests: u32,
    /// Chance that a reply is lost.
    pub lose_replies: u32,
    /// Longest further delay, in milliseconds.
    pub delay_ms: u64,
    /// Nothing arrives and nothing is answered.
    pub cut: bool,
}

/// Everything that a run shares.
pub struct World {
    state: Mutex<State>,
    /// Rings whenever something was added.
    added: Notify,
    began: Instant,
}

struct State {
    model: Model,
    published: Published,
    replica: Option<(Model, Published)>,
    random: SmallRng,
    /// How far the server's clock is off, in milliseconds.
    step_ms: i64,
    troubles: Vec<Trouble>,
    /// An error reply to everything.
    refusal: Option<&'static str>,
    /// Hosts that die with one of their next commands: which, after how many, and before it arrives or after.
    doomed: Option<(usize, u32, bool)>,
    /// Rises when all connections break.
    epoch: u64,
    commands: u64,
    trace: u64,
    /// By (plugin, message): hosts that have died of running it.
    died: BTreeMap<(String, EntryId), u32>,
    /// What was broken on the way, and cannot be seen at the end.
    seen: Vec<Violation>,
    /// The leases of the input as they were last, and after how many writes; `None` when the history is another one since.
    leases: Option<(u64, Leases)>,
}

/// Violations of one run that are kept.
const SEEN_MAX: usize = 5;

impl World {
    /// An empty one.
    pub fn new(seed: u64, hosts: usize) -> Arc<Self> {
        let mut model = Model::new();
        model.execute(EPOCH_MS, &[b"SET", WRONG.as_bytes(), b"x"]).expect("an empty server takes a string");
        let state = State {
            model,
            published: Published::default(),
            replica: None,
            random: SmallRng::seed_from_u64(seed ^ 0x9e37_79b9_7f4a_7c15),
            step_ms: 0,
            troubles: vec![Trouble::default(); hosts],
            refusal: None,
            doomed: None,
            epoch: 0,
            commands: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            died: BTreeMap::new(),
            seen: Vec::new(),
            leases: None,
        };
        Arc::new(World { state: Mutex::new(state), added: Notify::new(), began: Instant::now() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the run began, by simulated time.
    pub fn elapsed(&self) -> Duration {
        Instant::now() - self.began
    }

    /// The wall clock of the hosts, which nobody steps.
    pub fn now_ms(&self) -> u64 {
        EPOCH_MS + u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A random number below `bound`.
    pub fn below(&self, bound: u64) -> u64 {
        self.state().random.random_range(0..bound.max(1))
    }

    /// A random number in `0.0..1.0`.
    pub fn chance(&self) -> f64 {
        self.state().random.random()
    }

    /// Publishes a message; `None` when the server takes none at the moment.
    pub fn publish(&self, message: &Message) -> Option<EntryId> {
        let now = self.server_ms();
        let mut state = self.state();
        if state.refusal.is_some() {
            return None;
        }
        let fields = message.fields();
        let mut arguments: Vec<&[u8]> = vec![b"XADD", INPUT.as_bytes(), b"*"];
        arguments.extend(fields.iter().map(String::as_bytes));
        let Ok(Value::BulkString(id)) = state.model.execute(now, &arguments) else { return None };
        let id: EntryId = String::from_utf8_lossy(&id).parse().ok()?;
        state.published.entries.insert(id, message.clone());
        drop(state);
        self.added.notify_waiters();
        Some(id)
    }

    fn server_ms(&self) -> u64 {
        let step = self.state().step_ms;
        self.now_ms().saturating_add_signed(step)
    }

    /// Carries out a command as an operator at the server's own console would; an error is no reply.
    pub fn console(&self, arguments: &[&str]) -> Option<Value> {
        let now = self.server_ms();
        let arguments: Vec<&[u8]> = arguments.iter().map(|argument| argument.as_bytes()).collect();
        let reply = self.state().model.execute(now, &arguments).ok();
        self.added.notify_waiters();
        reply
    }

    /// Empties the server, even one at its memory limit.
    pub fn flush(&self) {
        let now = self.server_ms();
        let mut state = self.state();
        state.published = Published::default();
        for command in [&[b"FLUSHALL".as_slice()][..], &[b"SET", WRONG.as_bytes(), b"x"]] {
            let mut roomy = std::mem::take(&mut state.model);
            let full = roomy.is_out_of_memory();
            roomy.set_out_of_memory(false);
            // Neither can fail on a server that has memory.
            let _ = roomy.execute(now, command);
            roomy.set_out_of_memory(full);
            state.model = roomy;
        }
    }

    /// Looks at, or changes, what was published.
    pub fn published<T>(&self, look: impl FnOnce(&mut Published) -> T) -> T {
        look(&mut self.state().published)
    }

    /// Commands carried out so far, and a digest of all of them and of their replies.
    pub fn trace(&self) -> (u64, u64) {
        let state = self.state();
        (state.commands, state.trace)
    }

    /// A host dies of running a message; how many have.
    pub fn dies_of(&self, plugin: &str, entry: EntryId) -> u32 {
        let mut state = self.state();
        let died = state.died.entry((plugin.to_owned(), entry)).or_default();
        *died += 1;
        *died
    }

    /// Something is broken that cannot be seen at the end.
    pub fn saw(&self, violation: Violation) {
        self.state().saw(violation);
    }

    /// What was broken on the way.
    pub fn seen(&self) -> Vec<Violation> {
        self.state().seen.clone()
    }

    /// Whether the server is at its memory limit.
    pub fn is_full(&self) -> bool {
        self.state().model.is_out_of_memory()
    }

    /// The network's trouble for one host.
    pub fn trouble(&self, host: usize, trouble: Trouble) {
        if let Some(place) = self.state().troubles.get_mut(host) {
            *place = trouble;
        }
    }

    /// Every command is answered with this error, or none is any more.
    pub fn refuse(&self, error: Option<&'static str>) {
        self.state().refusal = error;
    }

    /// The server is at its memory limit, or is not any more.
    pub fn out_of_memory(&self, on: bool) {
        self.state().model.set_out_of_memory(on);
    }

    /// Moves the server's clock.
    pub fn step_clock(&self, by_ms: i64) {
        self.state().step_ms += by_ms;
    }

    /// The server forgets its scripts, as after a restart.
    pub fn forget_scripts(&self) {
        self.state().model.forget_scripts();
    }

    /// A replica has come this far.
    pub fn replicate(&self) {
        let mut state = self.state();
        state.replica = Some((state.model.clone(), state.published.clone()));
    }

    /// The replica takes over: what the old master had done since is gone, as if it had never been.
    pub fn fail_over(&self) {
        let mut state = self.state();
        if let Some((model, mut published)) = state.replica.take() {
            // What an operator has done to entries that are there again is still allowed to show.
            published.may_be_missing.append(&mut state.published.may_be_missing);
            published.may_be_trimmed.append(&mut state.published.may_be_trimmed);
            published.may_repeat.append(&mut state.published.may_repeat);
            // Its memory limit is that of this moment, not that of when the replica fell behind.
            let full = state.model.is_out_of_memory();
            (state.model, state.published) = (model, published);
            state.model.set_out_of_memory(full);
            state.model.forget_scripts();
            state.leases = None;
            // Connections do not outlive the server that they lead to.
            state.epoch += 1;
        }
    }

    /// A host is to die with one of its next commands.
    pub fn doom(&self, host: usize, commands: u32, before: bool) {
        self.state().doomed = Some((host, commands, before));
    }

    /// Carries out one request of a host; `None` when it never arrives or its reply never does. Says whether the host dies of it.
    fn arrive(&self, host: usize, request: &Request) -> (Option<RedisResult<Vec<Value>>>, bool) {
        let now = self.server_ms();
        let mut guard = self.state();
        let state = &mut *guard;
        let trouble = state.troubles.get(host).copied().unwrap_or_default();
        let mut lost = |percent: u32| percent > 0 && state.random.random_range(0..100) < percent;
        let (request_lost, reply_lost) = (trouble.cut || lost(trouble.lose_requests), lost(trouble.lose_replies));
        let mut dies = false;
        if let Some((doomed, left, before)) = state.doomed.filter(|(doomed, ..)| *doomed == host) {
            dies = left == 0;
            state.doomed = (!dies).then(|| (doomed, left - 1, before));
            if dies && before {
                return (None, true);
            }
        }
        if request_lost {
            return (None, dies);
        }
        let before = state.known_leases();
        let reply = match state.refusal {
            Some(text) => Err(error_reply(text)),
            None => request.carry_out(&mut state.model, now),
        };
        if before.0 == state.model.stream_writes() {
            state.leases = Some(before);
        } else {
            let after = state.known_leases();
            for text in moved_unseen(&before.1, &after.1) {
                state.saw(Violation::new("a lease moves only by a claim", format!("host {host}: {text}")));
            }
            state.leases = Some(after);
        }
        state.commands += 1;
        if tracing::enabled!(tracing::Level::TRACE) {
            let at_ms = now - EPOCH_MS;
            tracing::trace!(host, at_ms, lost = reply_lost, "{request} -> {}", Shown(&reply));
        }
        // Requests follow from the replies before them, so their digest tells runs apart.
        for word in request.commands.iter().flatten().flat_map(|argument| argument.chunks(8)) {
            let word = match <[u8; 8]>::try_from(word) {
                Ok(word) => u64::from_be_bytes(word),
                Err(_) => word.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)),
            };
            state.trace = (state.trace ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        drop(guard);
        if request.may_add() {
            self.added.notify_waiters();
        }
        (Some(reply).filter(|_| !reply_lost), dies)
    }
}

impl State {
    /// Who holds what of the input, and after how many writes that is so.
    fn known_leases(&mut self) -> (u64, Leases) {
        let writes = self.model.stream_writes();
        self.leases.take().filter(|(then, _)| *then == writes).unwrap_or_else(|| (writes, self.model.leases(INPUT)))
    }

    fn saw(&mut self, violation: Violation) {
        if self.seen.len() < SEEN_MAX {
            self.seen.push(violation);
        }
    }
}

/// Leases that a command has moved otherwise than it may: a claim gives an entry to somebody else under the next token, parking
/// gives it to a reserved consumer under the same, and nothing else touches either.
fn moved_unseen(before: &Leases, after: &Leases) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut moved, mut rest) = (Vec::new(), after.iter().peekable());
    for (place, (owner, token)) in before {
        while rest.next_if(|(other, _)| other < place).is_some() {}
        let Some((_, (owner_now, token_now))) = rest.next_if(|(other, _)| other == place) else { continue };
        let claimed = owner_now != owner && *token_now == token + 1;
        let parked = owner_now.starts_with(b"~") && token_now == token;
        let kept = owner_now == owner && token_now == token;
        if !claimed && !parked && !kept {
            let (group, entry) = (text(&place.0), place.1);
            let (from, to) = (text(owner), text(owner_now));
            moved.push(format!("{entry} of {group} went from {from}, token {token}, to {to}, token {token_now}"));
        }
    }
    moved
}

fn error_reply(text: &str) -> RedisError {
    match redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).and_then(Value::extract_error) {
        Err(error) => error,
        Ok(_) => unreachable!("a line that begins with a dash is an error reply"),
    }
}

/// One command, or several in one go, as bytes.
#[derive(Debug)]
struct Request {
    commands: Vec<Vec<Vec<u8>>>,
    transaction: bool,
}

impl Request {
    fn command(command: &Cmd) -> Vec<Vec<u8>> {
        let bytes = |argument| match argument {
            Arg::Simple(bytes) => <[u8]>::to_vec(bytes),
            // A cursor of an iteration, which is redis-rs's own, begins at 0.
            _ => b"0".to_vec(),
        };
        command.args_iter().map(bytes).collect()
    }

    fn carry_out(&self, model: &mut Model, now_ms: u64) -> RedisResult<Vec<Value>> {
        let commands: Vec<Vec<&[u8]>> =
            self.commands.iter().map(|command| command.iter().map(Vec::as_slice).collect()).collect();
        if self.transaction {
            let commands: Vec<&[&[u8]]> = commands.iter().map(Vec::as_slice).collect();
            let replies = model.transaction(now_ms, &commands)?;
            return Ok(vec![Value::Array(replies.into_iter().collect::<RedisResult<Vec<_>>>()?)]);
        }
        commands.iter().map(|command| model.execute(now_ms, command)).collect()
    }

    /// Whether there may be entries afterwards that nobody has seen.
    fn may_add(&self) -> bool {
        let name = self.commands.first().and_then(|command| command.first());
        name.is_some_and(|name| name == b"EVALSHA" || name == b"XADD")
    }

    /// How long the server is to wait when there is nothing, in milliseconds.
    fn block_ms(&self) -> Option<u64> {
        let [command] = self.commands.as_slice() else { return None };
        let at = command.iter().position(|argument| argument == b"BLOCK")?;
        String::from_utf8_lossy(command.get(at + 1)?).parse().ok()
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, command) in self.commands.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "; " })?;
            for argument in command {
                write!(f, "{} ", String::from_utf8_lossy(argument))?;
            }
        }
        Ok(())
    }
}

/// A reply for the log.
struct Shown<'a>(&'a RedisResult<Vec<Value>>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn show(f: &mut fmt::Formatter<'_>, value: &Value) -> fmt::Result {
            match value {
                Value::BulkString(bytes) => write!(f, "{}", String::from_utf8_lossy(bytes)),
                Value::Array(items) => {
                    f.write_str("[")?;
                    for item in items {
                        show(f, item)?;
                        f.write_str(" ")?;
                    }
                    f.write_str("]")
                }
                other => write!(f, "{other:?}"),
            }
        }
        match self.0 {
            Ok(values) => values.iter().try_for_each(|value| show(f, value)),
            Err(error) => write!(f, "{error}"),
        }
    }
}

/// What a host's connections lead to, and how to kill it.
#[derive(Clone)]
pub struct Network {
    /// The world.
    pub world: Arc<World>,
    /// Which host.
    pub host: usize,
    /// Called when the host dies of one of its commands.
    pub kill: Arc<dyn Fn() + Send + Sync>,
}

impl Server for Network {
    fn open(&self) -> Opening<'_> {
        let epoch = Mutex::new(self.world.state().epoch);
        let link = SimulatedLink { network: self.clone(), free_at: Mutex::new(Instant::now()), epoch };
        Box::pin(async move { Ok(Arc::new(link) as Arc<dyn Link>) })
    }

    fn address(&self) -> String {
        format!("the simulated server, by host {}", self.host)
    }
}

struct SimulatedLink {
    network: Network,
    /// Requests of one connection arrive in their order.
    free_at: Mutex<Instant>,
    /// When it was opened, or opened itself again.
    epoch: Mutex<u64>,
}

impl SimulatedLink {
    /// A request on its way is not its sender's any more: it arrives whatever becomes of the host.
    fn request(&self, request: Request) -> impl Future<Output = RedisResult<Vec<Value>>> + Send + 'static {
        let epoch = self.network.world.state().epoch;
        let broken = std::mem::replace(&mut *self.epoch.lock().unwrap_or_else(PoisonError::into_inner), epoch) != epoch;
        let (network, trouble) = (self.network.clone(), {
            let state = self.network.world.state();
            state.troubles.get(self.network.host).copied().unwrap_or_default()
        });
        let mut delay_us = 50 + network.world.below(400);
        if trouble.delay_ms > 0 {
            delay_us += network.world.below(trouble.delay_ms * 1_000);
        }
        let arrives = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = (*free_at).max(Instant::now() + Duration::from_micros(delay_us));
            *free_at
        };
        let (reply, replied) = tokio::sync::oneshot::channel();
        if !broken {
            deliver(network, request, arrives, epoch, reply);
        }
        async move {
            if broken {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
            }
            let patience = RESPONSE_TIMEOUT + Duration::from_secs(2);
            match timeout(patience, replied).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        }
    }
}

/// Carries a request to the server, and its reply back.
fn deliver(
    network: Network,
    request: Request,
    arrives: Instant,
    epoch: u64,
    reply: tokio::sync::oneshot::Sender<RedisResult<Vec<Value>>>,
) {
    tokio::spawn(async move {
        sleep_until(arrives).await;
        if network.world.state().epoch != epoch {
            // It was sent to a server that is no more: the reply's channel is dropped, as a reset connection is.
            return;
        }
        let until = request.block_ms().map(|block| Instant::now() + Duration::from_millis(block));
        loop {
            let news = network.world.added.notified();
            let (answer, dies) = network.world.arrive(network.host, &request);
            if dies {
                (network.kill)();
            }
            match (answer, until) {
                (Some(Ok(values)), Some(until)) if values == [Value::Nil] && Instant::now() < until => {
                    let _ = tokio::time::timeout_at(until, news).await;
                }
                (Some(answer), _) => {
                    // Nobody waits any more when the host is gone.
                    let _ = reply.send(answer);
                    return;
                }
                // Lost: nobody ever hears of it.
                (None, _) => return std::future::pending().await,
            }
        }
    });
}

impl Link for SimulatedLink {
    fn send<'a>(&'a self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let request = Request { commands: vec![Request::command(command)], transaction: false };
        let answer = self.request(request);
        Box::pin(async move { Ok(answer.await?.into_iter().next().unwrap_or(Value::Nil)) })
    }

    fn send_all<'a>(&'a self, commands: &'a Pipeline, _: usize, _: usize) -> RedisFuture<'a, Vec<Value>> {
        let request = Request {
            commands: commands.cmd_iter().map(Request::command).collect(),
            transaction: commands.is_transaction(),
        };
        Box::pin(self.request(request))
    }
}
