//! The commands that the model knows, what each needs, and the simple ones: keys, strings, hashes and the server itself.

use std::sync::Arc;

use redis::Value;

use crate::keyspace::{Object, WRONG_TYPE};
use crate::listpack::decimal;
use crate::{Model, Refusal, Reply, refuse, scripts, stream_commands};

/// Refusals that have nothing to do with the data.
pub(crate) struct Denied;

impl Denied {
    pub(crate) const OUT_OF_MEMORY: &str = "OOM command not allowed when used memory > 'maxmemory'.";
    pub(crate) const READ_ONLY: &str = "READONLY You can't write against a read only replica.";
}

pub(crate) type Run = fn(&mut Model, u64, &[&[u8]]) -> Reply;

/// A command that the server knows.
pub(crate) struct Known {
    run: Run,
    pub(crate) writes: bool,
    pub(crate) needs_memory: bool,
    /// Whether the header of a script says what it does.
    pub(crate) runs_script: bool,
}

/// What a command may do: only read, write, or write and need memory for it.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Reads,
    Writes,
    Grows,
    /// Reads, and a script may not call it.
    Governs,
}
use Does::{Governs, Grows, Reads, Writes};

/// The command of this name: what it does, how many words it has (negative: at least), and who carries it out.
fn table(name: &[u8]) -> Option<(Does, i32, Run)> {
    Some(match name {
        b"XADD" => (Grows, -5, stream_commands::xadd),
        b"XREADGROUP" => (Writes, -7, stream_commands::xreadgroup),
        b"XACK" => (Writes, -4, stream_commands::xack),
        b"XCLAIM" => (Writes, -6, stream_commands::xclaim),
        b"XPENDING" => (Reads, -3, stream_commands::xpending),
        b"XRANGE" => (Reads, -4, stream_commands::xrange),
        b"XREVRANGE" => (Reads, -4, stream_commands::xrevrange),
        b"XREAD" => (Reads, -4, stream_commands::xread),
        b"XLEN" => (Reads, 2, stream_commands::xlen),
        b"XDEL" => (Writes, -3, stream_commands::xdel),
        b"XTRIM" => (Writes, -4, stream_commands::xtrim),
        b"XAUTOCLAIM" => (Writes, -6, stream_commands::xautoclaim),
        b"EVALSHA" => (Governs, -3, scripts::evalsha),
        b"EVAL" => (Governs, -3, scripts::eval),
        b"HGET" => (Reads, 3, hget),
        b"HSET" => (Grows, -4, hset),
        b"HSETNX" => (Grows, 4, hsetnx),
        b"HDEL" => (Writes, -3, hdel),
        b"HINCRBY" => (Grows, 4, hincrby),
        b"HGETALL" => (Reads, 2, hgetall),
        b"HMGET" => (Reads, -3, hmget),
        b"HEXISTS" => (Reads, 3, hexists),
        b"HLEN" => (Reads, 2, hlen),
        b"TYPE" => (Reads, 2, kind),
        b"EXISTS" => (Reads, -2, exists),
        b"GET" => (Reads, 2, get),
        b"SET" => (Grows, -3, set),
        b"SETNX" => (Grows, 3, setnx),
        b"DEL" | b"UNLINK" => (Writes, -2, del),
        b"PEXPIRE" => (Writes, 3, pexpire),
        b"EXPIRE" => (Writes, 3, expire),
        b"PTTL" => (Reads, 2, pttl),
        b"SCAN" => (Reads, -2, scan),
        b"KEYS" => (Reads, 2, keys),
        b"TIME" => (Reads, 1, time),
        b"PING" => (Reads, -1, ping),
        b"INFO" => (Reads, -1, info),
        b"FLUSHALL" | b"FLUSHDB" => (Writes, -1, flush),
        b"DBSIZE" => (Reads, 1, size),
        _ => return None,
    })
}

/// A command whose second word says what it does.
fn subtable(name: &[u8], sub: &[u8]) -> Option<(Does, i32, Run)> {
    Some(match (name, sub) {
        (b"XGROUP", b"CREATE") => (Grows, -5, stream_commands::group_create),
        (b"XGROUP", b"CREATECONSUMER") => (Grows, 5, stream_commands::group_create_consumer),
        (b"XGROUP", b"SETID") => (Writes, -5, stream_commands::group_set_id),
        (b"XGROUP", b"DESTROY") => (Writes, 4, stream_commands::group_destroy),
        (b"XGROUP", b"DELCONSUMER") => (Writes, 5, stream_commands::group_drop_consumer),
        (b"XINFO", b"STREAM") => (Reads, -3, stream_commands::info_stream),
        (b"XINFO", b"GROUPS") => (Reads, 3, stream_commands::info_groups),
        (b"XINFO", b"CONSUMERS") => (Reads, 4, stream_commands::info_consumers),
        (b"SCRIPT", b"LOAD") => (Governs, 3, scripts::load),
        (b"SCRIPT", b"EXISTS") => (Governs, -3, scripts::exists),
        (b"SCRIPT", b"FLUSH") => (Governs, -2, scripts::flush),
        (b"CONFIG", b"GET") => (Governs, -3, config),
        (b"MEMORY", b"USAGE") => (Reads, -3, memory),
        _ => return None,
    })
}

fn upper(name: &[u8], buffer: &mut [u8; 20]) -> usize {
    for (slot, byte) in buffer.iter_mut().zip(name) {
        *slot = byte.to_ascii_uppercase();
    }
    name.len().min(buffer.len())
}

/// Finds a command, as far as its words alone say that it can be carried out.
pub(crate) fn known(arguments: &[&[u8]], from_script: bool) -> Result<Known, Refusal> {
    let (mut name, mut sub) = ([0; 20], [0; 20]);
    let first = arguments.first().copied().unwrap_or_default();
    let length = upper(first, &mut name);
    let name = name.get(..length).unwrap_or_default();
    let mut found = table(name);
    let container = found.is_none() && matches!(name, b"XGROUP" | b"XINFO" | b"SCRIPT" | b"CONFIG" | b"MEMORY");
    if container && let Some(second) = arguments.get(1) {
        let length = upper(second, &mut sub);
        found = subtable(name, sub.get(..length).unwrap_or_default());
        if found.is_none() && !from_script {
            let (word, of) = (String::from_utf8_lossy(second), String::from_utf8_lossy(name));
            return refuse(format!("ERR unknown subcommand '{word}'. Try {of} HELP."));
        }
    }
    let Some((does, words, run)) = found else {
        if from_script {
            return refuse("ERR Unknown Redis command called from script");
        }
        if container {
            return wrong_number(&String::from_utf8_lossy(first).to_lowercase());
        }
        let shown = |word: &&[u8]| format!("'{}' ", String::from_utf8_lossy(word));
        let rest: String = arguments.iter().skip(1).map(shown).collect();
        let first = String::from_utf8_lossy(first);
        return refuse(format!("ERR unknown command '{first}', with args beginning with: {rest}"));
    };
    let right = if words < 0 { arguments.len() as i32 >= -words } else { arguments.len() as i32 == words };
    if !right {
        if from_script {
            return refuse("ERR Wrong number of args calling Redis command from script");
        }
        let mut name = String::from_utf8_lossy(name).to_lowercase();
        if container {
            name = format!("{name}|{}", String::from_utf8_lossy(&sub).trim_end_matches('\0').to_lowercase());
        }
        return wrong_number(&name);
    }
    if from_script && does == Governs {
        return refuse("ERR This Redis command is not allowed from script");
    }
    let (writes, runs_script) = (matches!(does, Writes | Grows), matches!(name, b"EVAL" | b"EVALSHA"));
    Ok(Known { run, writes, needs_memory: does == Grows, runs_script })
}

pub(crate) fn run(model: &mut Model, known: &Known, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    (known.run)(model, now_ms, arguments)
}

pub(crate) fn wrong_number<T>(command: &str) -> Result<T, Refusal> {
    refuse(format!("ERR wrong number of arguments for '{command}' command"))
}

pub(crate) fn syntax_error<T>() -> Result<T, Refusal> {
    refuse("ERR syntax error")
}

/// The argument at this place; nothing when there is none.
pub(crate) fn at<'a>(arguments: &[&'a [u8]], place: usize) -> &'a [u8] {
    arguments.get(place).copied().unwrap_or_default()
}

pub(crate) fn after<'a, 'b>(arguments: &'b [&'a [u8]], place: usize) -> &'b [&'a [u8]] {
    arguments.get(place..).unwrap_or_default()
}

pub(crate) fn integer(text: &[u8]) -> Result<i64, Refusal> {
    decimal(text).ok_or_else(|| Refusal("ERR value is not an integer or out of range".to_owned()))
}

pub(crate) fn bulk(bytes: &[u8]) -> Value {
    Value::BulkString(bytes.to_vec())
}

fn number(count: usize) -> Value {
    Value::Int(count as i64)
}

fn hget(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let hash = model.keys.hash(at(arguments, 1))?;
    Ok(hash.and_then(|hash| hash.get(at(arguments, 2))).map_or(Value::Nil, bulk))
}

fn hset(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    if arguments.len() % 2 == 1 {
        return wrong_number("hset");
    }
    let hash = model.keys.hash_or_new(at(arguments, 1))?;
    let mut new = 0;
    for pair in after(arguments, 2).chunks_exact(2) {
        new += usize::from(hash.set(at(pair, 0), at(pair, 1)));
    }
    Ok(number(new))
}

fn hsetnx(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let (key, field) = (at(arguments, 1), at(arguments, 2));
    if model.keys.hash(key)?.is_some_and(|hash| hash.get(field).is_some()) {
        return Ok(Value::Int(0));
    }
    model.keys.hash_or_new(key)?.set(field, at(arguments, 3));
    Ok(Value::Int(1))
}

fn hdel(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let key = at(arguments, 1);
    let Some(hash) = model.keys.hash_mut(key)? else { return Ok(Value::Int(0)) };
    let gone = after(arguments, 2).iter().filter(|field| hash.remove(field)).count();
    if hash.len() == 0 {
        model.keys.delete(key);
    }
    Ok(number(gone))
}

fn hincrby(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let (key, field, by) = (at(arguments, 1), at(arguments, 2), integer(at(arguments, 3))?);
    let old = match model.keys.hash(key)?.and_then(|hash| hash.get(field)) {
        Some(text) => decimal(text).ok_or_else(|| Refusal("ERR hash value is not an integer".to_owned()))?,
        None => 0,
    };
    let Some(new) = old.checked_add(by) else { return refuse("ERR increment or decrement would overflow") };
    model.keys.hash_or_new(key)?.set(field, new.to_string().as_bytes());
    Ok(Value::Int(new))
}

fn hgetall(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let Some(hash) = model.keys.hash(at(arguments, 1))? else { return Ok(Value::Array(Vec::new())) };
    Ok(Value::Array(hash.in_order().into_iter().flat_map(|(field, value)| [bulk(field), bulk(value)]).collect()))
}

fn hmget(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let hash = model.keys.hash(at(arguments, 1))?;
    let one = |field: &&[u8]| hash.and_then(|hash| hash.get(field)).map_or(Value::Nil, bulk);
    Ok(Value::Array(after(arguments, 2).iter().map(one).collect()))
}

fn hexists(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let hash = model.keys.hash(at(arguments, 1))?;
    Ok(Value::Int(i64::from(hash.is_some_and(|hash| hash.get(at(arguments, 2)).is_some()))))
}

fn hlen(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    Ok(number(model.keys.hash(at(arguments, 1))?.map_or(0, |hash| hash.len())))
}

fn kind(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let kind = model.keys.get(at(arguments, 1)).map_or("none", Object::kind);
    Ok(Value::SimpleString(kind.to_owned()))
}

fn exists(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    Ok(number(after(arguments, 1).iter().filter(|key| model.keys.get(key).is_some()).count()))
}

fn get(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    match model.keys.get(at(arguments, 1)) {
        None => Ok(Value::Nil),
        Some(Object::Text(text)) => Ok(bulk(text)),
        Some(_) => refuse(WRONG_TYPE),
    }
}

fn set(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let (key, value) = (at(arguments, 1), at(arguments, 2));
    let (mut lives, mut unless_there, mut if_there) = (None, false, false);
    let mut options = after(arguments, 3).iter();
    while let Some(option) = options.next() {
        let scale = match option.to_ascii_uppercase().as_slice() {
            b"NX" if !if_there => {
                unless_there = true;
                continue;
            }
            b"XX" if !unless_there => {
                if_there = true;
                continue;
            }
            b"PX" if lives.is_none() => 1,
            b"EX" if lives.is_none() => 1_000,
            _ => return syntax_error(),
        };
        let Some(time) = options.next() else { return syntax_error() };
        match integer(time)? {
            1.. => lives = Some(integer(time)? as u64 * scale),
            _ => return refuse("ERR invalid expire time in 'set' command"),
        }
    }
    let there = model.keys.get(key).is_some();
    if (unless_there && there) || (if_there && !there) {
        return Ok(Value::Nil);
    }
    model.keys.put(key, Object::Text(Arc::from(value)));
    if let Some(lives) = lives {
        model.keys.set_expiry(key, now_ms + lives);
    }
    Ok(Value::Okay)
}

fn setnx(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let key = at(arguments, 1);
    if model.keys.get(key).is_some() {
        return Ok(Value::Int(0));
    }
    model.keys.put(key, Object::Text(Arc::from(at(arguments, 2))));
    Ok(Value::Int(1))
}

fn del(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    Ok(number(after(arguments, 1).iter().filter(|key| model.keys.delete(key)).count()))
}

fn pexpire(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    expire_in(model, now_ms, at(arguments, 1), integer(at(arguments, 2))?)
}

fn expire(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    expire_in(model, now_ms, at(arguments, 1), integer(at(arguments, 2))?.saturating_mul(1_000))
}

fn expire_in(model: &mut Model, now_ms: u64, key: &[u8], lives: i64) -> Reply {
    if model.keys.get(key).is_none() {
        return Ok(Value::Int(0));
    }
    match u64::try_from(lives) {
        Ok(lives @ 1..) => model.keys.set_expiry(key, now_ms.saturating_add(lives)),
        _ => {
            model.keys.delete(key);
        }
    }
    Ok(Value::Int(1))
}

fn pttl(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let key = at(arguments, 1);
    Ok(Value::Int(match (model.keys.get(key), model.keys.expires_at(key)) {
        (None, _) => -2,
        (Some(_), None) => -1,
        (Some(_), Some(when)) => when.saturating_sub(now_ms) as i64,
    }))
}

fn scan(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let (mut pattern, mut of_kind): (&[u8], Option<String>) = (b"*", None);
    for option in after(arguments, 2).chunks(2) {
        match (at(option, 0).to_ascii_uppercase().as_slice(), option.get(1)) {
            (b"MATCH", Some(text)) => pattern = text,
            (b"COUNT", Some(text)) if integer(text)? > 0 => {}
            (b"TYPE", Some(text)) => of_kind = Some(String::from_utf8_lossy(text).to_lowercase()),
            _ => return syntax_error(),
        }
    }
    let wanted = |(key, object): &(&[u8], &Object)| {
        matches(pattern, key) && of_kind.as_deref().is_none_or(|kind| kind == object.kind())
    };
    let found = model.keys.names().filter(wanted).map(|(key, _)| bulk(key)).collect();
    Ok(Value::Array(vec![bulk(b"0"), Value::Array(found)]))
}

fn keys(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let found = model.keys.names().filter(|(key, _)| matches(at(arguments, 1), key));
    Ok(Value::Array(found.map(|(key, _)| bulk(key)).collect()))
}

/// Whether a key matches a pattern with `*`, `?`, `[…]` and backslashes.
fn matches(pattern: &[u8], key: &[u8]) -> bool {
    match (pattern, key) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=key.len()).any(|skip| matches(rest, key.get(skip..).unwrap_or_default())),
        ([b'?', rest @ ..], [_, key @ ..]) => matches(rest, key),
        ([b'\\', literal, rest @ ..], [first, key @ ..]) => literal == first && matches(rest, key),
        ([b'[', rest @ ..], [first, key @ ..]) => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
            let (set, rest) = rest.split_at(end);
            let (set, negated) = set.strip_prefix(b"^").map_or((set, false), |set| (set, true));
            let mut inside = set.contains(first) && *first != b'-';
            inside |= set.windows(3).any(|w| matches!(w, [from, b'-', to] if (from..=to).contains(&first)));
            inside != negated && matches(rest.get(1..).unwrap_or_default(), key)
        }
        ([literal, rest @ ..], [first, key @ ..]) => literal == first && matches(rest, key),
        _ => false,
    }
}

fn time(_: &mut Model, now_ms: u64, _: &[&[u8]]) -> Reply {
    let text = |number: u64| bulk(number.to_string().as_bytes());
    Ok(Value::Array(vec![text(now_ms / 1_000), text(now_ms % 1_000 * 1_000)]))
}

fn ping(_: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    Ok(arguments.get(1).map_or_else(|| Value::SimpleString("PONG".to_owned()), |word| bulk(word)))
}

fn info(model: &mut Model, _: u64, _: &[&[u8]]) -> Reply {
    let role = if model.read_only { "slave" } else { "master" };
    let text = format!(
        "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n\r\n# Replication\r\nrole:{role}\r\n\r\n\
         # Cluster\r\ncluster_enabled:0\r\n"
    );
    Ok(bulk(text.as_bytes()))
}

fn config(_: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let settings = [("appendfsync", "always"), ("appendonly", "yes"), ("maxmemory-policy", "noeviction")];
    let asked = |name: &str| after(arguments, 2).iter().any(|pattern| matches(pattern, name.as_bytes()));
    let found = settings.iter().filter(|(name, _)| asked(name));
    Ok(Value::Array(found.flat_map(|(name, value)| [bulk(name.as_bytes()), bulk(value.as_bytes())]).collect()))
}

fn memory(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    Ok(model.keys.get(at(arguments, 2)).map_or(Value::Nil, |object| {
        number(match object {
            Object::Text(text) => 64 + text.len(),
            Object::Hash(hash) => 64 + hash.in_order().iter().map(|(f, v)| f.len() + v.len() + 4).sum::<usize>(),
            Object::Stream(stream) => stream.bytes(),
        })
    }))
}

fn flush(model: &mut Model, _: u64, _: &[&[u8]]) -> Reply {
    model.keys.clear();
    Ok(Value::Okay)
}

fn size(model: &mut Model, _: u64, _: &[&[u8]]) -> Reply {
    Ok(number(model.keys.names().count()))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_those_of_keys_do() {
        let yes: [(&str, &str); 6] =
            [("*", ""), ("a*c", "abbc"), ("h?llo", "hello"), ("[a-c]x", "bx"), ("[^a]x", "bx"), ("a\\*", "a*")];
        let no = [("a*c", "abb"), ("h?llo", "hllo"), ("[a-c]x", "dx"), ("[^a]x", "ax"), ("a\\*", "ab"), ("a", "ab")];
        assert!(yes.iter().all(|(pattern, key)| matches(pattern.as_bytes(), key.as_bytes())));
        assert!(!no.iter().any(|(pattern, key)| matches(pattern.as_bytes(), key.as_bytes())));
    }
}
