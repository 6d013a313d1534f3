//! What a seed asks for: hosts, plugins, messages that say how they are to be handled, and faults at their times. Printed whole
//! when a seed fails.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// How a message is handled, by every plugin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// So many outputs; none is filtered.
    Emit(u32),
    /// Traps until this attempt, then one output.
    FailUntil(u32),
    /// Traps always.
    Fail,
    /// Never to be handled.
    Reject,
    /// Its payload is not JSON.
    Malformed,
    /// The marker that the original's publisher writes.
    Init,
    /// Kills the process that runs it.
    Kill,
    /// Emits to a key that is no stream.
    WrongKey,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which one.
    pub seq: u32,
    /// When it is published, in milliseconds.
    pub at_ms: u64,
    /// How it is handled.
    pub act: Act,
    /// How long a run of it takes.
    pub busy_ms: u64,
    /// For plugins that keep the order of a key.
    pub key: u32,
}

impl Message {
    /// The fields of its entry, names and values in turn.
    pub fn fields(&self) -> Vec<String> {
        let Message { seq, busy_ms, key, .. } = self;
        let act = match self.act {
            Act::Init => return vec!["init".into(), "true".into()],
            Act::Malformed => return vec!["payload".into(), format!("{{\"seq\":{seq},")],
            Act::Emit(count) => format!("\"emit\",\"n\":{count}"),
            Act::FailUntil(attempt) => format!("\"fail\",\"n\":{attempt}"),
            Act::Fail => "\"fail\",\"n\":1000000".to_owned(),
            Act::Reject => "\"reject\"".to_owned(),
            Act::Kill => "\"kill\"".to_owned(),
            Act::WrongKey => "\"wrong\"".to_owned(),
        };
        let payload = format!("{{\"seq\":{seq},\"key\":{key},\"busy\":{busy_ms},\"do\":{act}}}");
        vec!["payload".into(), payload, "priority".into(), "2".into()]
    }
}

/// Something that goes wrong. Hosts are named by their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Killed, and started again after so long.
    Kill { host: usize, down_ms: u64 },
    /// Killed with one of its next commands, before it arrives or after it was carried out.
    KillAtCommand { host: usize, commands: u32, before: bool, down_ms: u64 },
    /// Stopped by a signal, and continued.
    Freeze { host: usize, for_ms: u64 },
    /// Told to leave, and started again.
    Restart { host: usize },
    /// Loses requests and replies (in percent) and delays.
    Network { host: usize, for_ms: u64, requests: u32, replies: u32, delay_ms: u64 },
    /// Reaches nothing.
    Cut { host: usize, for_ms: u64 },
    /// Nobody reaches anything.
    CutAll { for_ms: u64 },
    /// The server's clock is set.
    Step { by_ms: i64 },
    /// A replica that is behind by so much takes over.
    FailOver { lag_ms: u64 },
    /// The server is at its memory limit.
    OutOfMemory { for_ms: u64 },
    /// The server answers everything with an error.
    Refuse { for_ms: u64, error: &'static str },
    /// The server forgets its scripts.
    ForgetScripts,
    /// What the handlers need is down.
    Outage { for_ms: u64 },
    /// Somebody trims the input by length.
    Trim { keep: u32 },
    /// Somebody deletes an entry.
    Delete { which: u64 },
    /// Somebody deletes a consumer, with what it holds.
    DeleteConsumer { which: u64 },
    /// Somebody destroys a group.
    DestroyGroup { plugin: usize },
    /// Somebody empties the server.
    Flush,
    /// Somebody sends all rejected dead letters back.
    Redrive,
}

/// Error replies of a server that cannot serve.
const ERRORS: [&str; 8] = [
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script.",
    "CLUSTERDOWN The cluster is down",
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "MASTERDOWN Link with MASTER is down",
    "TRYAGAIN Multiple keys request during rehashing of slot",
];

/// From this seed on, all scenarios are about the order of keys while failovers take back what was finished: among all that can
/// go wrong elsewhere, the moments that matter there are rare.
pub const FAILOVERS_FROM: u64 = 1_000_000_000_000;

/// How long a host may take to leave.
const LEAVING_MS: u64 = 2_000;

/// A whole run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// How many hosts.
    pub hosts: usize,
    /// How many plugins, each with its own group on the input.
    pub plugins: usize,
    /// Whether the plugins keep the order of a key.
    pub ordered: bool,
    /// Tries after the first.
    pub retries: u32,
    /// Entries of the input that are kept when everybody has finished with them.
    pub keep: u64,
    /// In the order of their times.
    pub messages: Vec<Message>,
    /// With their times, in milliseconds, in order.
    pub faults: Vec<(u64, Fault)>,
    /// When the last message is out and the last fault has begun.
    pub ends_ms: u64,
}

impl Scenario {
    /// What a seed asks for.
    pub fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let r = &mut random;
        if seed >= FAILOVERS_FROM {
            return Self::failovers(seed, r);
        }
        let hosts = r.random_range(1..=3);
        let plugins = r.random_range(1..=2);
        let ordered = seed % 3 == 2;
        let ends_ms = r.random_range(3_000..12_000);
        // A breaker opens after 50 failures on a host: an outage needs enough to fail, on few hosts, and no host that forgets.
        let outage = hosts < 3 && r.random_range(0..12) == 0;
        let (count, published_ms) = if outage { (150, 300) } else { (r.random_range(8..30), ends_ms) };
        let mut messages: Vec<Message> = (0..count).map(|seq| message(r, seq, published_ms, outage)).collect();
        messages.sort_by_key(|message| message.at_ms);
        let mut faults = Vec::new();
        // An operator's hand is rarer than a network's.
        let careless = r.random_range(0..4) == 0;
        for _ in 0..if outage { 0 } else { r.random_range(0..8) } {
            let at = r.random_range(0..ends_ms);
            faults.push((at, if careless && r.random() { operator(r, plugins) } else { nature(r, hosts) }));
        }
        if let Some((at, Fault::OutOfMemory { for_ms })) =
            faults.iter().find(|(_, fault)| matches!(fault, Fault::OutOfMemory { .. })).cloned()
            && for_ms > LEAVING_MS
            && r.random()
        {
            // A host that leaves while the server is full must be able to let go of what it holds, when nothing else is wrong.
            faults.retain(|(_, fault)| fault.keeps_replies() && fault.keeps_history());
            let host = r.random_range(0..hosts);
            faults.push((at + r.random_range(0..for_ms - LEAVING_MS), Fault::Restart { host }));
        }
        if outage {
            faults.push((0, Fault::Outage { for_ms: r.random_range(3_000..20_000) }));
        }
        // Ids are made of the server's clock: a history that was rewound and a clock that was set back could give an id out twice,
        // which no server can prevent and nobody can notice.
        if faults.iter().any(|(_, fault)| matches!(fault, Fault::FailOver { .. })) {
            faults.retain(|(_, fault)| !matches!(fault, Fault::Step { .. }));
        }
        faults.sort_by_key(|(at, _)| *at);
        let retries = if outage { 3 } else { r.random_range(1..=3) };
        let keep = if r.random() { 5 } else { 100_000 };
        Scenario { seed, hosts, plugins, ordered, retries, keep, messages, faults, ends_ms }
    }
}

impl Scenario {
    fn failovers(seed: u64, r: &mut SmallRng) -> Self {
        let (hosts, ends_ms) = (r.random_range(1..=2), r.random_range(2_000..6_000));
        let mut messages: Vec<Message> = (0..r.random_range(10..40))
            .map(|seq| {
                let act = if r.random_range(0..8) == 0 { Act::FailUntil(2) } else { Act::Emit(r.random_range(1..3)) };
                let (at_ms, key) = (r.random_range(0..ends_ms), r.random_range(0..2));
                Message { seq, at_ms, act, busy_ms: r.random_range(1..300), key }
            })
            .collect();
        messages.sort_by_key(|message| message.at_ms);
        let mut faults = Vec::new();
        for _ in 0..r.random_range(1..=4) {
            faults.push((r.random_range(0..ends_ms), Fault::FailOver { lag_ms: r.random_range(1..1_500) }));
        }
        if r.random() {
            faults.push((r.random_range(0..ends_ms), Fault::Restart { host: r.random_range(0..hosts) }));
        }
        if seed.is_multiple_of(2) {
            let (for_ms, requests, replies) =
                (r.random_range(500..4_000), r.random_range(0..20), r.random_range(0..30));
            let network = Fault::Network { host: 0, for_ms, requests, replies, delay_ms: r.random_range(0..300) };
            faults.push((r.random_range(0..ends_ms), network));
        }
        faults.sort_by_key(|(at, _)| *at);
        Scenario { seed, hosts, plugins: 1, ordered: true, retries: 3, keep: 100_000, messages, faults, ends_ms }
    }
}

impl Fault {
    /// Whether it neither takes back nor takes away what the server knows of its messages.
    fn keeps_history(&self) -> bool {
        match self {
            Fault::FailOver { .. }
            | Fault::Trim { .. }
            | Fault::Delete { .. }
            | Fault::DeleteConsumer { .. }
            | Fault::DestroyGroup { .. }
            | Fault::Flush
            | Fault::Redrive => false,
            Fault::Kill { .. }
            | Fault::KillAtCommand { .. }
            | Fault::Freeze { .. }
            | Fault::Restart { .. }
            | Fault::Network { .. }
            | Fault::Cut { .. }
            | Fault::CutAll { .. }
            | Fault::Step { .. }
            | Fault::OutOfMemory { .. }
            | Fault::Refuse { .. }
            | Fault::ForgetScripts
            | Fault::Outage { .. } => true,
        }
    }

    /// Whether every reply of the server still arrives, and says what was asked.
    fn keeps_replies(&self) -> bool {
        let loses =
            matches!(self, Fault::Network { .. } | Fault::Cut { .. } | Fault::CutAll { .. } | Fault::Refuse { .. });
        !loses && !matches!(self, Fault::FailOver { .. })
    }
}

impl Scenario {
    /// Whether nobody takes back, or takes away, what the server knows of its messages.
    pub fn keeps_history(&self) -> bool {
        self.faults.iter().all(|(_, fault)| fault.keeps_history())
    }

    /// How often a host leaves in order.
    pub fn restarts(&self) -> u32 {
        let restarts = self.faults.iter().filter(|(_, fault)| matches!(fault, Fault::Restart { .. })).count();
        u32::try_from(restarts).unwrap_or(u32::MAX)
    }

    /// Whether every reply of the server arrives, and says what was asked.
    pub fn keeps_replies(&self) -> bool {
        self.faults.iter().all(|(_, fault)| fault.keeps_replies())
    }
}

fn message(r: &mut SmallRng, seq: u32, ends_ms: u64, outage: bool) -> Message {
    let act = match r.random_range(0..100) {
        _ if outage => Act::Emit(r.random_range(0..4)),
        0..=54 => Act::Emit(r.random_range(0..4)),
        55..=74 => Act::FailUntil(r.random_range(2..=2)),
        75..=79 => Act::Fail,
        80..=85 => Act::Reject,
        86..=88 => Act::Malformed,
        89..=90 => Act::Init,
        91..=94 => Act::Kill,
        _ => Act::WrongKey,
    };
    let busy_ms = match r.random_range(0..20) {
        _ if outage => 1,
        0 => r.random_range(500..4_000),
        1..=5 => r.random_range(20..300),
        _ => r.random_range(1..10),
    };
    let (at_ms, few) = (r.random_range(0..ends_ms), r.random_range(0..4));
    // With few keys at a time too little would fail at once to open a breaker before retries run out.
    Message { seq, at_ms, act, busy_ms, key: if outage { seq } else { few } }
}

fn nature(r: &mut SmallRng, hosts: usize) -> Fault {
    let host = r.random_range(0..hosts);
    let (for_ms, down_ms) = (r.random_range(100..8_000), r.random_range(10..3_000));
    match r.random_range(0..16) {
        0 | 1 => Fault::Kill { host, down_ms },
        2 | 3 => {
            let (commands, before) = (r.random_range(0..60), r.random());
            Fault::KillAtCommand { host, commands, before, down_ms }
        }
        4 | 5 => Fault::Freeze { host, for_ms },
        6 => Fault::Restart { host },
        7 | 8 => {
            let (requests, replies) = (r.random_range(0..40), r.random_range(0..40));
            Fault::Network { host, for_ms, requests, replies, delay_ms: r.random_range(0..1_000) }
        }
        9 => Fault::Cut { host, for_ms },
        10 => Fault::CutAll { for_ms },
        11 => Fault::Step { by_ms: if r.random() { 3_600_000 } else { -7_200_000 } },
        12 => Fault::FailOver { lag_ms: r.random_range(1..3_000) },
        13 => Fault::OutOfMemory { for_ms },
        14 => {
            Fault::Refuse { for_ms, error: ERRORS.get(r.random_range(0..ERRORS.len())).copied().unwrap_or("LOADING") }
        }
        _ => Fault::ForgetScripts,
    }
}

fn operator(r: &mut SmallRng, plugins: usize) -> Fault {
    match r.random_range(0..8) {
        0 | 1 => Fault::Trim { keep: r.random_range(0..6) },
        2 | 3 => Fault::Delete { which: r.random() },
        4 => Fault::DeleteConsumer { which: r.random() },
        5 => Fault::DestroyGroup { plugin: r.random_range(0..plugins) },
        6 => Fault::Flush,
        _ => Fault::Redrive,
    }
}
