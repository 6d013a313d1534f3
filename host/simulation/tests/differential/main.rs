//! The model beside a real redis-server: the same commands and the same scripts to both, and every reply compared.
//!
//! A failure prints the seed of its sequence and what was done until then.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::explicit_write,
    reason = "a test's helpers may fail as its tests do, and say what was skipped"
)]

use std::collections::HashMap;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use cofferdam_simulation::Model;
use redis::{Connection, ConnectionLike, RedisError, RedisResult, Value};

mod author;

use author::Author;

const SEQUENCES: u64 = 300;
const STEPS: usize = 60;

const RETRY: &str = "~retry/86400000";
const DEAD: &str = "stream:dead_letter";
const STREAMS: [&str; 3] = ["in1", "in2", "cofferdam:redrive:g1"];
const GROUPS: [&str; 2] = ["g1", "g2"];
const CONSUMERS: [&str; 3] = ["c1", "c2", RETRY];
/// Streams that only scripts write to, with ids that the server makes.
const OUTPUTS: [&str; 3] = ["out1", "out2", DEAD];

/// The scripts as they are sent.
static TEXTS: LazyLock<Vec<(&str, String)>> = LazyLock::new(cofferdam_streams::script_texts);

/// A redis-server of our own on a unix socket.
struct Server {
    process: Child,
    connection: Connection,
    _directory: tempfile::TempDir,
}

impl Server {
    /// `None` when this machine has no redis-server of the line that the model models.
    fn start() -> Option<Self> {
        let version = Command::new("redis-server").arg("--version").output();
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        if !version.contains("v=7.0.") {
            skipped(&format!("the model is compared with redis-server 7.0, and here is {version:?}"));
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]).arg(&socket);
        let process = command.arg("--dir").arg(directory.path()).stdout(Stdio::null()).spawn().unwrap();
        let client = redis::Client::open(format!("redis+unix://{}", socket.display())).unwrap();
        let patience = Instant::now();
        let connection = loop {
            match client.get_connection() {
                Ok(connection) => break connection,
                Err(error) if patience.elapsed() > Duration::from_secs(30) => panic!("no redis-server: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        Some(Server { process, connection, _directory: directory })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn skipped(why: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {why}").unwrap();
}

fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").unwrap();
}

/// A small generator of numbers, the same for the same seed everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

type Words = Vec<Vec<u8>>;

fn to_cmd(words: &Words) -> redis::Cmd {
    let mut command = redis::Cmd::new();
    command.arg(words);
    command
}

fn words(text: &str) -> Words {
    text.split_whitespace().map(|word| word.as_bytes().to_vec()).collect()
}

trait Push {
    fn push_word(&mut self, word: impl ToString) -> &mut Self;
}

impl Push for Words {
    fn push_word(&mut self, word: impl ToString) -> &mut Self {
        self.push(word.to_string().into_bytes());
        self
    }
}

/// Writes one reply so that it can be compared: made ids by their order of appearance in it, without what is measured in time or
/// memory.
#[derive(Default)]
struct Canon {
    made: HashMap<String, usize>,
    of_hash: bool,
}

impl Canon {
    fn text(&mut self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (mark, id) = text.strip_prefix('<').map_or(("", text.as_str()), |id| ("<", id));
        let made = id.split_once('-').is_some_and(|(ms, seq)| {
            ms.len() == 13 && [ms, seq].iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        });
        if !made {
            return format!("{text:?}");
        }
        // A hash has no order.
        if self.of_hash {
            return format!("{mark}#");
        }
        let next = self.made.len();
        format!("{mark}#{}", self.made.entry(id.to_owned()).or_insert(next))
    }

    fn error(&mut self, error: &RedisError) -> String {
        let text = format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default());
        format!("ERROR {}", text.split(" script: ").next().unwrap_or_default())
    }

    fn value(&mut self, value: &Value, command: &Words) -> String {
        let name = command.iter().take(2).map(|word| String::from_utf8_lossy(word).to_uppercase()).collect::<Vec<_>>();
        let name: Vec<&str> = name.iter().map(String::as_str).collect();
        match (value, name.as_slice()) {
            (Value::Array(items), ["XPENDING", _]) if command.len() > 3 => {
                let mut text = String::new();
                for item in items {
                    let Value::Array(parts) = item else { return format!("{value:?}") };
                    let idle = matches!(parts[2], Value::Int(0..));
                    text += &format!("[{} {} {idle} {:?}]", self.any(&parts[0]), self.any(&parts[1]), parts[3]);
                }
                text
            }
            (Value::Array(items), ["HGETALL", _]) => {
                self.of_hash = true;
                let mut pairs: Vec<_> =
                    items.chunks(2).map(|pair| format!("{} {}", self.any(&pair[0]), self.any(&pair[1]))).collect();
                // What each server's own clock showed.
                pairs.retain(|pair| !pair.contains("clock_ms"));
                pairs.sort();
                pairs.join(" ")
            }
            (Value::Array(items), ["XINFO", "STREAM"]) => self.pairs(items, command),
            (Value::Array(items), ["XINFO", "CONSUMERS"]) => {
                let one = |item: &Value| match item {
                    Value::Array(items) => self.pairs(items, command),
                    other => format!("{other:?}"),
                };
                items.iter().map(one).collect()
            }
            (Value::Array(items), ["KEYS" | "SCAN", _]) => {
                let list = if name[0] == "SCAN" { items.last() } else { Some(value) };
                let Some(Value::Array(keys)) = list else { return format!("{value:?}") };
                let mut keys: Vec<String> = keys.iter().map(|key| self.any(key)).collect();
                keys.sort();
                keys.join(" ")
            }
            _ => self.any(value),
        }
    }

    fn pairs(&mut self, items: &[Value], command: &Words) -> String {
        let mut text = String::new();
        for pair in items.chunks(2) {
            let name = self.any(&pair[0]);
            // The size of a node depends on how far apart its ids are, and made ids are as far apart as the clocks say.
            let made = OUTPUTS.iter().chain(&STREAMS[2..]).any(|stream| command[2] == stream.as_bytes());
            let measured = ["\"idle\"", "\"radix-tree-nodes\""].contains(&name.as_str());
            if !(measured || made && name == "\"radix-tree-keys\"") {
                text += &format!("{name}={} ", self.any(&pair[1]));
            }
        }
        text
    }

    fn any(&mut self, value: &Value) -> String {
        match value {
            Value::BulkString(bytes) => self.text(bytes),
            Value::Array(items) => {
                let mut texts: Vec<String> = Vec::new();
                for item in items {
                    // Made on another stream: whether it equals an id of this one depends on what else came in its millisecond.
                    let of_another = texts.last().is_some_and(|name| name == "\"sent_as\"");
                    texts.push(if of_another { String::from("#") } else { self.any(item) });
                }
                format!("[{}]", texts.join(" "))
            }
            Value::ServerError(error) => self.error(&RedisError::from(error.clone())),
            other => format!("{other:?}"),
        }
    }

    fn reply(&mut self, reply: &RedisResult<Value>, command: &Words) -> String {
        match reply {
            Ok(value) => self.value(value, command),
            Err(error) => self.error(error),
        }
    }
}

/// Both sides, and what has been done to them.
struct Pair<'a> {
    server: &'a mut Server,
    model: Model,
    began: Instant,
    began_ms: u64,
    history: Vec<String>,
    compared: &'a mut u64,
}

impl Pair<'_> {
    fn now_ms(&self) -> u64 {
        self.began_ms + self.began.elapsed().as_millis() as u64
    }

    /// Only the model: for a generator that wants to know what is there.
    fn look(&mut self, command: &Words) -> Vec<Value> {
        let now = self.now_ms();
        let slices: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        match self.model.execute(now, &slices) {
            Ok(Value::Array(items)) => items,
            _ => Vec::new(),
        }
    }

    /// Sends commands to both and compares the replies.
    fn both(&mut self, commands: &[Words]) -> Result<Vec<RedisResult<Value>>, String> {
        let packed: Vec<u8> = commands.iter().flat_map(|command| redis::pack_command(command)).collect();
        let replies = self.server.connection.req_packed_commands(&packed, 0, commands.len()).unwrap();
        let mut results = Vec::new();
        for (command, reply) in commands.iter().zip(replies) {
            let now = self.now_ms();
            let slices: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            // The client makes an error of a reply that has one somewhere within.
            let result = self.model.execute(now, &slices).and_then(Value::extract_error);
            *self.compared += 1;
            let reply = reply.extract_error();
            if matches!((&reply, &result), (Ok(real), Ok(ours)) if real == ours) {
                results.push(result);
                continue;
            }
            let written = |reply| Canon::default().reply(reply, command);
            let (real, ours) = (written(&reply), written(&result));
            if real != ours {
                return Err(format!("{}\n   redis: {real}\n   model: {ours}", shown(command)));
            }
            results.push(result);
        }
        Ok(results)
    }

    fn transaction(&mut self, commands: &[Words]) -> Result<(), String> {
        let mut packed = redis::pack_command(&words("MULTI"));
        packed.extend(commands.iter().flat_map(|command| redis::pack_command(command)));
        packed.extend(redis::pack_command(&words("EXEC")));
        let count = commands.len() + 2;
        let replies = self.server.connection.req_packed_commands(&packed, 0, count).unwrap();
        let real = match replies.into_iter().next_back().unwrap().extract_error_of_whole() {
            Ok(Value::Array(items)) => items.into_iter().map(Value::extract_error).collect(),
            Ok(other) => vec![Ok(other)],
            Err(error) => vec![Err(error)],
        };
        let now = self.now_ms();
        let slices: Vec<Vec<&[u8]>> =
            commands.iter().map(|command| command.iter().map(Vec::as_slice).collect()).collect();
        let slices: Vec<&[&[u8]]> = slices.iter().map(Vec::as_slice).collect();
        let ours = self.model.transaction(now, &slices).unwrap_or_else(|error| vec![Err(error)]);
        *self.compared += 1;
        let text = |replies: &[RedisResult<Value>]| {
            let words = replies.iter().zip(commands).map(|(reply, command)| Canon::default().reply(reply, command));
            format!("{} {}", replies.len(), words.collect::<Vec<_>>().join("; "))
        };
        let (real, ours) = (text(&real), text(&ours));
        if real == ours { Ok(()) } else { Err(format!("a transaction\n   redis: {real}\n   model: {ours}")) }
    }

    /// Everything that can be seen from outside.
    fn compare_all(&mut self) -> Result<(), String> {
        let mut commands = Vec::new();
        for stream in STREAMS.iter().chain(&OUTPUTS) {
            commands.push(words(&format!("XRANGE {stream} - +")));
            commands.push(words(&format!("XINFO STREAM {stream}")));
            commands.push(words(&format!("XINFO GROUPS {stream}")));
        }
        for stream in STREAMS {
            for group in GROUPS {
                commands.push(words(&format!("XPENDING {stream} {group} - + 10000")));
                commands.push(words(&format!("XPENDING {stream} {group}")));
                commands.push(words(&format!("XINFO CONSUMERS {stream} {group}")));
                for consumer in CONSUMERS {
                    commands.push(words(&format!("XPENDING {stream} {group} - + 10000 {consumer}")));
                }
            }
        }
        for key in ["ledger", "park"] {
            commands.push(words(&format!("HGETALL {key}")));
        }
        commands.push(words("KEYS *"));
        self.both(&commands).map(drop)
    }
}

/// The error of a whole reply, and not that of one of its items.
trait ExtractWhole {
    fn extract_error_of_whole(self) -> RedisResult<Value>;
}

impl ExtractWhole for Value {
    fn extract_error_of_whole(self) -> RedisResult<Value> {
        match self {
            Value::ServerError(error) => Err(error.into()),
            other => Ok(other),
        }
    }
}

fn shown(command: &Words) -> String {
    let words = command.iter().map(|word| {
        let text = String::from_utf8_lossy(word);
        let short: String = text.chars().take(60).collect();
        if short.is_empty() || short.contains(char::is_whitespace) { format!("{short:?}") } else { short }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Scripts that say something of how Lua and Redis speak with one another.
const CURIOSITIES: [&str; 18] = [
    "local r = redis.pcall('HSET', 'ledger', 'q', 1) return type(r) == 'table' and r.err or r",
    "redis.call('DEL', 'nothing') local r = redis.pcall('HSET', 'ledger', 'q', 1) return type(r) == 'table' and r.err or r",
    "return {1, 2.9, -3.7, 'a', false, true, {ok='FINE'}, {err='ODD thing'}, nil, 5}",
    "return redis.status_reply('OK')",
    "return redis.error_reply('ODD thing')",
    "return redis.error_reply('single')",
    "return redis.pcall('HGET', 'in1', 'x')",
    "return redis.call('TYPE', 'in1')",
    "return redis.call('XLEN', 'in1', 'more')",
    "return redis.call('NOSUCH')",
    "local ok, e = pcall(redis.call, 'NOSUCH') return {tostring(ok), e.err}",
    "redis.call('HSET', 'ledger', 'n', 1e15, 'm', 0.1, 'l', 1e300) return redis.call('HMGET', 'ledger', 'n', 'm', 'l', 'zz')",
    "return cjson.encode({a='x/y\\127\\1\"\\\\', d={1,2.5,'z'}})",
    "return cjson.encode(cjson.decode('{\"k\":[1,null,true]}'))",
    "return cmsgpack.pack({'a', string.rep('b', 300), 5, 300, -7, 1.5, 70000, true})",
    "return cmsgpack.unpack(cmsgpack.pack({'a', 'b\\0c', {'d'}}))",
    "local x = redis.call('GET', 'nothing') return {type(x), tostring(#redis.call('XRANGE', 'nothing', '-', '+'))}",
    "return nothing_there",
];

fn sequence(server: &mut Server, seed: u64, compared: &mut u64) -> Result<(), (String, Vec<String>)> {
    let mut dice = Dice(seed);
    let time: (u64, u64) = redis::cmd("TIME").query(&mut server.connection).unwrap();
    let pair = &mut Pair {
        server,
        model: Model::new(),
        began: Instant::now(),
        began_ms: time.0 * 1_000 + time.1 / 1_000,
        history: Vec::new(),
        compared,
    };
    let mut next_id = 1;
    for reset in ["REPLICAOF NO ONE", "CONFIG SET maxmemory 0", "FLUSHALL", "SCRIPT FLUSH"] {
        to_cmd(&words(reset)).exec(&mut pair.server.connection).unwrap();
    }
    let mut troubled = 0;
    for step in 0..STEPS {
        let done = one_step(pair, &mut dice, &mut next_id, &mut troubled, step);
        let done = done.and_then(|()| pair.compare_all());
        if let Err(difference) = done {
            return Err((format!("step {step}: {difference}"), std::mem::take(&mut pair.history)));
        }
    }
    Ok(())
}

fn one_step(
    pair: &mut Pair<'_>,
    dice: &mut Dice,
    next_id: &mut u64,
    troubled: &mut usize,
    step: usize,
) -> Result<(), String> {
    if step == 0 {
        let mut start = Author { dice, pair, next_id };
        let mut commands: Vec<Words> = (0..start.dice.below(150)).map(|_| start.add("in1")).collect();
        commands.extend([words("XGROUP CREATE in1 g1 0 MKSTREAM"), words("XGROUP CREATE in2 g1 $ MKSTREAM")]);
        pair.history.extend(commands.iter().map(shown));
        return pair.both(&commands).map(drop);
    }
    // Troubles last for a few steps.
    if *troubled > 0 {
        *troubled -= 1;
        if *troubled == 0 {
            trouble(pair, false, false);
        }
    } else if dice.one_in(60) {
        *troubled = dice.below(6) as usize + 2;
        let replica = dice.one_in(3);
        trouble(pair, !replica, replica);
    }
    if dice.one_in(if *troubled > 0 { 5 } else { 25 }) {
        let text = dice.pick(&CURIOSITIES);
        let header = dice.pick(&["", "#!lua\n", "#!lua flags=allow-oom\n"]);
        let mut command = words("EVAL");
        command.push_word(format!("{header}{text}"));
        command.push_word("1").push_word("in1");
        pair.history.push(shown(&command));
        return pair.both(&[command]).map(drop);
    }
    let transaction = dice.one_in(25);
    let mut commands = Author { dice, pair, next_id }.command();
    if transaction {
        commands.extend(Author { dice, pair, next_id }.command());
        pair.history.push(format!("MULTI {}", commands.iter().map(shown).collect::<Vec<_>>().join("; ")));
        return pair.transaction(&commands);
    }
    pair.history.extend(commands.iter().map(shown));
    let results = pair.both(&commands)?;
    // As a host does: an unknown script is taught, and called again.
    let unknown = results.iter().any(|result| matches!(result, Err(error) if error.code() == Some("NOSCRIPT")));
    if unknown {
        let sha = String::from_utf8_lossy(&commands[0][1]).into_owned();
        let text = &TEXTS.iter().find(|(_, text)| redis::Script::new(text).get_hash() == sha).unwrap().1;
        let mut load = words("SCRIPT LOAD");
        load.push_word(text);
        pair.both(&[load])?;
        pair.both(&commands)?;
    }
    Ok(())
}

fn trouble(pair: &mut Pair<'_>, out_of_memory: bool, replica: bool) {
    pair.history.push(format!("-- out of memory: {out_of_memory}, replica: {replica}"));
    let memory = format!("CONFIG SET maxmemory {}", u8::from(out_of_memory));
    let role = if replica { "REPLICAOF 127.0.0.1 1" } else { "REPLICAOF NO ONE" };
    for command in [memory.as_str(), role] {
        to_cmd(&words(command)).exec(&mut pair.server.connection).unwrap();
    }
    pair.model.set_out_of_memory(out_of_memory);
    pair.model.set_read_only(replica);
}

#[test]
fn the_model_answers_as_redis_does() {
    let Some(mut server) = Server::start() else { return };
    let (began, mut compared) = (Instant::now(), 0);
    let mut failures = 0;
    for seed in 0..SEQUENCES {
        if let Err((difference, history)) = sequence(&mut server, seed, &mut compared) {
            if failures == 0 {
                say(&history.join("\n"));
            }
            say(&format!("seed {seed}, {difference}"));
            failures += 1;
        }
    }
    assert_eq!(failures, 0, "sequences in which the model and the server differ");
    say(&format!("{SEQUENCES} sequences of {STEPS} steps, {compared} replies compared in {:?}", began.elapsed()));
}

/// The average time of one of many runs of `work`.
fn each(runs: u32, mut work: impl FnMut(u32)) -> Duration {
    let began = Instant::now();
    (0..runs).for_each(&mut work);
    began.elapsed() / runs
}

#[test]
#[ignore = "measures, and checks nothing"]
fn the_model_is_fast() {
    const RUNS: u32 = 5_000;
    let mut model = Model::new();
    let now = 1_800_000_000_000;
    let mut run = |command: &Words| {
        let slices: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        model.execute(now, &slices).unwrap()
    };
    run(&words("XGROUP CREATE in g 0 MKSTREAM"));
    let mut add = words("XADD in * payload");
    add.push(vec![b'x'; 100]);
    add.extend(words("priority 5 producer_id somebody"));
    let adds = each(RUNS * 10, |_| drop(run(&add)));
    let read = words("XREADGROUP GROUP g c COUNT 10 STREAMS in >");
    let mut batches = Vec::new();
    let reads = each(RUNS, |_| batches.push(run(&read)));
    let mut load = words("SCRIPT LOAD");
    load.push_word(&TEXTS[0].1);
    let Value::BulkString(sha) = run(&load) else { panic!("SCRIPT LOAD gave no digest") };
    let settles: Vec<Words> = batches.iter().map(|batch| settle_of_batch(batch, &sha)).collect();
    let settle = each(RUNS, |at| {
        let reply = run(&settles[at as usize]);
        assert_eq!(reply, Value::Array(vec![Value::Int(1); 10]));
    });
    let snapshots = each(1_000, |_| {
        let _before = model.clone();
        let slices: Vec<&[u8]> = add.iter().map(Vec::as_slice).collect();
        model.execute(now, &slices).unwrap();
    });
    say(&format!(
        "XADD {adds:?}, XREADGROUP of 10 {reads:?}, settle of 10 with one output each {settle:?}, a snapshot of {} entries \
         and an XADD {snapshots:?}",
        RUNS * 10
    ));
}

/// The settle of all the messages of an XREADGROUP's reply, each with one output.
fn settle_of_batch(batch: &Value, sha: &[u8]) -> Words {
    let Value::Array(streams) = batch else { panic!("{batch:?}") };
    let Value::Array(parts) = &streams[0] else { panic!("{batch:?}") };
    let Value::Array(entries) = &parts[1] else { panic!("{batch:?}") };
    let id = |entry: &Value| match entry {
        Value::Array(parts) => match &parts[0] {
            Value::BulkString(id) => id.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let mut call = vec![b"EVALSHA".to_vec(), sha.to_vec()];
    call.extend(words(&format!("5 in ledger park {DEAD} out g c")));
    call.extend([id(&entries[0]), id(&entries[entries.len() - 1])]);
    let digest = "d".repeat(64);
    call.extend(words("100000 0 2026-11-24T10:00:00.000000"));
    call.push_word("");
    call.extend(words(&format!("1 plug {digest} {digest} {}", entries.len())));
    for entry in entries {
        call.push(id(entry));
        call.extend(words("1 1 1 1 1 01234567-0123-0123-0123-0123456789ab"));
        call.push(vec![b'y'; 100]);
        call.extend(words("5 in/1800000000000-0/0/1 2 key k"));
    }
    call
}
