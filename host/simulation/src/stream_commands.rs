//! The commands of streams and their consumer groups.

use std::sync::Arc;

use redis::Value;

use crate::command::{after, at, bulk, integer, syntax_error, wrong_number};
use crate::keyspace::Object;
use crate::stream::{Entry, Group, Id, NODE_ENTRIES, Pending, Stream, Trim};
use crate::{Model, Refusal, Reply, refuse};

const INVALID_ID: &str = "ERR Invalid stream ID specified as stream command argument";

fn is(word: &[u8], keyword: &str) -> bool {
    word.eq_ignore_ascii_case(keyword.as_bytes())
}

fn unsigned(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// An id as `ms-seq` or `ms` alone, which stands for `ms-missing`.
fn strict_id(text: &[u8], missing: u64) -> Result<Id, Refusal> {
    let mut parts = text.splitn(2, |byte| *byte == b'-');
    let ms = parts.next().and_then(unsigned);
    let seq = parts.next().map_or(Some(missing), unsigned);
    match (ms, seq) {
        (Some(ms), Some(seq)) => Ok(Id { ms, seq }),
        _ => refuse(INVALID_ID),
    }
}

fn lenient_id(text: &[u8], missing: u64) -> Result<Id, Refusal> {
    match text {
        b"-" => Ok(Id::MIN),
        b"+" => Ok(Id::MAX),
        _ => strict_id(text, missing),
    }
}

fn interval_start(text: &[u8]) -> Result<Id, Refusal> {
    match text {
        [b'(', rest @ ..] if !rest.is_empty() => {
            strict_id(rest, 0)?.next().ok_or_else(|| Refusal("ERR invalid start ID for the interval".to_owned()))
        }
        _ => lenient_id(text, 0),
    }
}

fn interval_end(text: &[u8]) -> Result<Id, Refusal> {
    match text {
        [b'(', rest @ ..] if !rest.is_empty() => strict_id(rest, u64::MAX)?
            .previous()
            .ok_or_else(|| Refusal("ERR invalid end ID for the interval".to_owned())),
        _ => lenient_id(text, u64::MAX),
    }
}

fn id_value(id: Id) -> Value {
    Value::BulkString(id.text())
}

fn entry_value(entry: &Entry) -> Value {
    let fields = entry.fields.iter().map(|field| bulk(field)).collect();
    Value::Array(vec![id_value(entry.id), Value::Array(fields)])
}

fn limit_of(count: i64) -> usize {
    if count > 0 { count as usize } else { usize::MAX }
}

fn no_group<T>(key: &[u8], group: &[u8]) -> Result<T, Refusal> {
    let (key, group) = (String::from_utf8_lossy(key), String::from_utf8_lossy(group));
    refuse(format!("NOGROUP No such key '{key}' or consumer group '{group}'"))
}

fn no_group_of_key<T>(key: &[u8], group: &[u8]) -> Result<T, Refusal> {
    let (key, group) = (String::from_utf8_lossy(key), String::from_utf8_lossy(group));
    refuse(format!("NOGROUP No such consumer group '{group}' for key name '{key}'"))
}

/// How XADD and XTRIM trim, and the place of the first argument that says something else.
struct Trimming {
    trim: Option<Trim>,
    approximate: bool,
    limit: u64,
    make_stream: bool,
    rest: usize,
}

fn trimming(arguments: &[&[u8]], adding: bool) -> Result<Trimming, Refusal> {
    let mut found = Trimming { trim: None, approximate: false, limit: 0, make_stream: true, rest: 2 };
    let mut limit = None;
    while let Some(option) = arguments.get(found.rest) {
        let more = arguments.len() - 1 - found.rest;
        if adding && *option == b"*" {
            break;
        }
        let (by_length, by_id) = (is(option, "MAXLEN"), is(option, "MINID"));
        if (by_length || by_id) && more > 0 {
            if found.trim.is_some() {
                return refuse("ERR syntax error, MAXLEN and MINID options at the same time are not compatible");
            }
            let next = at(arguments, found.rest + 1);
            if more >= 2 && (next == b"~" || next == b"=") {
                found.approximate = next == b"~";
                found.rest += 1;
            }
            let bound = at(arguments, found.rest + 1);
            found.trim = Some(if by_id {
                Trim::Before(strict_id(bound, 0)?)
            } else {
                match u64::try_from(integer(bound)?) {
                    Ok(keep) => Trim::Length(keep),
                    Err(_) => return refuse("ERR The MAXLEN argument must be >= 0."),
                }
            });
            found.rest += 2;
        } else if is(option, "LIMIT") && more > 0 {
            match u64::try_from(integer(at(arguments, found.rest + 1))?) {
                Ok(count) => limit = Some(count),
                Err(_) => return refuse("ERR The LIMIT argument must be >= 0."),
            }
            found.rest += 2;
        } else if adding && is(option, "NOMKSTREAM") {
            found.make_stream = false;
            found.rest += 1;
        } else if adding {
            break;
        } else {
            return syntax_error();
        }
    }
    if limit.is_some() && found.trim.is_none() {
        return refuse("ERR syntax error, LIMIT cannot be used without specifying a trimming strategy");
    }
    if !adding && found.trim.is_none() {
        return refuse("ERR syntax error, XTRIM must be called with MAXLEN or MINID");
    }
    if limit.is_some() && !found.approximate {
        return refuse("ERR syntax error, LIMIT cannot be used without the special ~ option");
    }
    found.limit = limit.unwrap_or(if found.approximate { 100 * NODE_ENTRIES as u64 } else { 0 });
    Ok(found)
}

pub(crate) fn xadd(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let trimming = trimming(arguments, true)?;
    let (key, asked) = (at(arguments, 1), at(arguments, trimming.rest));
    let mut next_seq = false;
    let asked = match asked {
        b"*" => None,
        [ms @ .., b'-', b'*'] => {
            next_seq = true;
            Some(strict_id(ms, 0).and_then(|id| if ms.contains(&b'-') { refuse(INVALID_ID) } else { Ok(id) })?)
        }
        text => Some(strict_id(text, 0)?),
    };
    let fields = after(arguments, trimming.rest + 1);
    if fields.is_empty() || fields.len() % 2 == 1 {
        return wrong_number("xadd");
    }
    if asked == Some(Id::MIN) && !next_seq {
        return refuse("ERR The ID specified in XADD must be greater than 0-0");
    }
    if !trimming.make_stream && model.keys.get(key).is_none() {
        return Ok(Value::Nil);
    }
    let stream = model.keys.stream_or_new(key)?;
    let last = stream.last_id;
    let Some(after_last) = last.next() else {
        return refuse("ERR The stream has exhausted the last possible ID, unable to add more items");
    };
    let id = match asked {
        None if now_ms > last.ms => Id { ms: now_ms, seq: 0 },
        None => after_last,
        Some(id) if next_seq && id.ms == last.ms => match last.seq.checked_add(1) {
            Some(seq) => Id { ms: id.ms, seq },
            None => Id::MIN,
        },
        Some(id) => id,
    };
    if id <= last {
        return refuse("ERR The ID specified in XADD is equal or smaller than the target stream top item");
    }
    stream.append(id, fields.iter().map(|field| field.to_vec()).collect());
    if let Some(trim) = trimming.trim {
        stream.trim(trim, trimming.approximate, trimming.limit);
    }
    Ok(id_value(id))
}

pub(crate) fn xlen(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    Ok(Value::Int(model.keys.stream(at(arguments, 1))?.map_or(0, |stream| stream.length as i64)))
}

pub(crate) fn xtrim(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let trimming = trimming(arguments, false)?;
    let Some(stream) = model.keys.stream_mut(at(arguments, 1))? else { return Ok(Value::Int(0)) };
    let removed = trimming.trim.map_or(0, |trim| stream.trim(trim, trimming.approximate, trimming.limit));
    Ok(Value::Int(removed as i64))
}

fn ids(arguments: &[&[u8]]) -> Result<Vec<Id>, Refusal> {
    arguments.iter().map(|text| strict_id(text, 0)).collect()
}

pub(crate) fn xdel(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let Some(stream) = model.keys.stream_mut(at(arguments, 1))? else { return Ok(Value::Int(0)) };
    let gone = ids(after(arguments, 2))?.into_iter().filter(|id| stream.delete(*id)).count();
    Ok(Value::Int(gone as i64))
}

pub(crate) fn xrange(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    range(model, arguments, false)
}

pub(crate) fn xrevrange(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    range(model, arguments, true)
}

fn range(model: &mut Model, arguments: &[&[u8]], backwards: bool) -> Reply {
    let (from, to) = if backwards { (3, 2) } else { (2, 3) };
    let (start, end) = (interval_start(at(arguments, from))?, interval_end(at(arguments, to))?);
    let mut count = None;
    for option in after(arguments, 4).chunks(2) {
        match option {
            [word, text] if is(word, "COUNT") => count = Some(integer(text)?.max(0)),
            _ => return syntax_error(),
        }
    }
    let Some(stream) = model.keys.stream(at(arguments, 1))? else { return Ok(Value::Array(Vec::new())) };
    if count == Some(0) {
        return Ok(Value::Nil);
    }
    let (entries, limit) = (stream.range(start, end), limit_of(count.unwrap_or(0)));
    Ok(Value::Array(if backwards {
        entries.rev().take(limit).map(entry_value).collect()
    } else {
        entries.take(limit).map(entry_value).collect()
    }))
}

/// What XREAD and XREADGROUP were asked for.
#[derive(Default)]
struct Reading<'a> {
    group: Option<(&'a [u8], &'a [u8])>,
    count: usize,
    no_ack: bool,
    streams: &'a [&'a [u8]],
    after: &'a [&'a [u8]],
}

fn reading<'a>(arguments: &'a [&'a [u8]], of_group: bool) -> Result<Reading<'a>, Refusal> {
    let mut found = Reading { count: usize::MAX, ..Reading::default() };
    let mut place = 1;
    while let Some(option) = arguments.get(place) {
        let more = arguments.len() - 1 - place;
        if is(option, "BLOCK") && more > 0 {
            if integer(at(arguments, place + 1))
                .map_err(|_| Refusal("ERR timeout is not an integer or out of range".into()))?
                < 0
            {
                return refuse("ERR timeout is negative");
            }
            place += 2;
        } else if is(option, "COUNT") && more > 0 {
            found.count = limit_of(integer(at(arguments, place + 1))?);
            place += 2;
        } else if is(option, "GROUP") && more >= 2 {
            if !of_group {
                return refuse("ERR The GROUP option is only supported by XREADGROUP. You called XREAD instead.");
            }
            found.group = Some((at(arguments, place + 1), at(arguments, place + 2)));
            place += 3;
        } else if is(option, "NOACK") {
            if !of_group {
                return refuse("ERR The NOACK option is only supported by XREADGROUP. You called XREAD instead.");
            }
            found.no_ack = true;
            place += 1;
        } else if is(option, "STREAMS") && more > 0 {
            let rest = after(arguments, place + 1);
            if rest.len() % 2 == 1 {
                let command = if of_group { "xreadgroup" } else { "xread" };
                return refuse(format!(
                    "ERR Unbalanced '{command}' list of streams: for each stream key an ID or '{}' must be specified.",
                    if of_group { '>' } else { '$' }
                ));
            }
            (found.streams, found.after) = rest.split_at(rest.len() / 2);
            break;
        } else {
            return syntax_error();
        }
    }
    if found.streams.is_empty() {
        return syntax_error();
    }
    if of_group && found.group.is_none() {
        return refuse("ERR Missing GROUP option for XREADGROUP");
    }
    Ok(found)
}

fn read_reply(streams: Vec<Value>) -> Value {
    if streams.is_empty() { Value::Nil } else { Value::Array(streams) }
}

pub(crate) fn xread(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let reading = reading(arguments, false)?;
    let mut starts = Vec::with_capacity(reading.streams.len());
    for (key, id) in reading.streams.iter().zip(reading.after) {
        let stream = model.keys.stream(key)?;
        starts.push(match *id {
            b"$" => stream.map_or(Id::MIN, |stream| stream.last_id),
            b">" => {
                return refuse(
                    "ERR The > ID can be specified only when calling XREADGROUP using the GROUP <group> <consumer> option.",
                );
            }
            id => strict_id(id, 0)?,
        });
    }
    let mut replies = Vec::new();
    for (key, start) in reading.streams.iter().zip(starts) {
        let Some(stream) = model.keys.stream(key)? else { continue };
        let Some(start) = start.next() else { continue };
        let last = stream.last().map_or(Id::MIN, |entry| entry.id);
        if stream.length == 0 || last < start {
            continue;
        }
        let entries = stream.range(start, Id::MAX).take(reading.count).map(entry_value).collect();
        replies.push(Value::Array(vec![bulk(key), Value::Array(entries)]));
    }
    Ok(read_reply(replies))
}

pub(crate) fn xreadgroup(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let reading = reading(arguments, true)?;
    let (group, consumer) = reading.group.unwrap_or_default();
    let mut starts = Vec::with_capacity(reading.streams.len());
    for (key, id) in reading.streams.iter().zip(reading.after) {
        if !model.keys.stream(key)?.is_some_and(|stream| stream.groups.contains_key(group)) {
            let Err(Refusal(text)) = no_group::<()>(key, group) else { continue };
            return refuse(format!("{text} in XREADGROUP with GROUP option"));
        }
        starts.push(match *id {
            b">" => None,
            b"$" => {
                return refuse(
                    "ERR The $ ID is meaningless in the context of XREADGROUP: you want to read the history of this consumer by \
                     specifying a proper ID, or use the > ID to get new messages. The $ ID would just return an empty result set.",
                );
            }
            id => Some(strict_id(id, 0)?),
        });
    }
    let mut replies = Vec::new();
    for (key, start) in reading.streams.iter().zip(starts) {
        let Some(stream) = model.keys.stream_mut(key)? else { continue };
        let entries = match start {
            None => read_new(stream, now_ms as i64, group, consumer, &reading),
            Some(start) => Some(read_history(stream, now_ms as i64, group, consumer, (start, reading.count))),
        };
        if let Some(entries) = entries {
            replies.push(Value::Array(vec![bulk(key), Value::Array(entries)]));
        }
    }
    Ok(read_reply(replies))
}

/// A group taken out of its stream, so that both can be used; it goes back with [`put_back`].
fn take_group(stream: &mut Stream, name: &[u8]) -> Option<Arc<Group>> {
    stream.groups.get_mut(name).map(std::mem::take)
}

fn put_back(stream: &mut Stream, name: &[u8], group: Arc<Group>) {
    if let Some(slot) = stream.groups.get_mut(name) {
        *slot = group;
    }
}

fn read_new(stream: &mut Stream, now: i64, name: &[u8], consumer: &[u8], reading: &Reading<'_>) -> Option<Vec<Value>> {
    let last = stream.last().map(|entry| entry.id)?;
    if stream.groups.get(name)?.last_id >= last {
        return None;
    }
    let mut kept = take_group(stream, name)?;
    let group = Arc::make_mut(&mut kept);
    let consumer = group.meet(consumer, now);
    let mut values = Vec::new();
    let start = group.last_id.next().unwrap_or(Id::MAX);
    for entry in stream.range(start, Id::MAX).take(reading.count) {
        group.entries_read = stream.read_after(group.entries_read, entry.id);
        group.last_id = entry.id;
        values.push(entry_value(entry));
        if !reading.no_ack {
            group.give(entry.id, Pending { consumer: consumer.clone(), delivered_ms: now, deliveries: 1 });
        }
    }
    put_back(stream, name, kept);
    Some(values)
}

fn read_history(
    stream: &mut Stream,
    now: i64,
    name: &[u8],
    consumer: &[u8],
    (after, count): (Id, usize),
) -> Vec<Value> {
    let Some(mut kept) = take_group(stream, name) else { return Vec::new() };
    let group = Arc::make_mut(&mut kept);
    group.meet(consumer, now);
    let held = group.consumers.get(consumer).map(|consumer| &consumer.pending);
    let start = after.next();
    let held = held.zip(start).map(|(held, start)| held.range(start..).take(count).copied().collect::<Vec<_>>());
    let mut values = Vec::new();
    for id in held.unwrap_or_default() {
        if let Some(entry) = stream.entry(id) {
            values.push(entry_value(entry));
            if let Some(pending) = group.pending.get_mut(&id) {
                pending.delivered_ms = now;
                pending.deliveries += 1;
            }
        } else {
            values.push(Value::Array(vec![id_value(id), Value::Nil]));
        }
    }
    put_back(stream, name, kept);
    values
}

pub(crate) fn xack(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let stream = model.keys.stream_mut(at(arguments, 1))?;
    let Some(group) = stream.and_then(|stream| stream.groups.get_mut(at(arguments, 2))) else {
        return Ok(Value::Int(0));
    };
    let ids = ids(after(arguments, 3))?;
    let group = Arc::make_mut(group);
    Ok(Value::Int(ids.into_iter().filter(|id| group.release(*id)).count() as i64))
}

pub(crate) fn xclaim(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let (key, name, now) = (at(arguments, 1), at(arguments, 2), now_ms as i64);
    let Some(stream) = model.keys.stream_mut(key)?.filter(|stream| stream.groups.contains_key(name)) else {
        return no_group(key, name);
    };
    let number =
        |text: &[u8], what: &str| integer(text).map_err(|_| Refusal(format!("ERR Invalid {what} argument for XCLAIM")));
    let least_idle = number(at(arguments, 4), "min-idle-time")?.max(0);
    let wanted: Vec<Id> = after(arguments, 5).iter().map_while(|text| strict_id(text, 0).ok()).collect();
    let (mut delivered, mut deliveries, mut last_id) = (None, None, Id::MIN);
    let (mut force, mut just_id) = (false, false);
    let mut options = after(arguments, 5 + wanted.len()).iter();
    while let Some(option) = options.next() {
        if is(option, "FORCE") {
            force = true;
            continue;
        }
        if is(option, "JUSTID") {
            just_id = true;
            continue;
        }
        let known = ["IDLE", "TIME", "RETRYCOUNT", "LASTID"].into_iter().find(|word| is(option, word));
        let (Some(known), Some(text)) = (known, options.next()) else {
            return refuse(format!("ERR Unrecognized XCLAIM option '{}'", String::from_utf8_lossy(option)));
        };
        match known {
            "IDLE" => delivered = Some(now - number(text, "IDLE option")?),
            "TIME" => delivered = Some(number(text, "TIME option")?),
            "RETRYCOUNT" => deliveries = Some(number(text, "RETRYCOUNT option")?),
            _ => last_id = strict_id(text, 0)?,
        }
    }
    let delivered = delivered.filter(|time| (0..=now).contains(time)).unwrap_or(now);
    let Some(mut kept) = take_group(stream, name) else { return no_group(key, name) };
    let group = Arc::make_mut(&mut kept);
    group.last_id = group.last_id.max(last_id);
    let mut claimer = None;
    let mut claimed = Vec::new();
    for id in wanted {
        let Some(entry) = stream.entry(id) else {
            group.release(id);
            continue;
        };
        let count = match group.pending.get(&id) {
            Some(pending) if least_idle > 0 && now - pending.delivered_ms < least_idle => continue,
            Some(pending) => pending.deliveries,
            None if force => 1,
            None => continue,
        };
        let consumer = claimer.get_or_insert_with(|| group.meet(at(arguments, 3), now)).clone();
        let count = match deliveries {
            Some(count) if count >= 0 => count,
            _ if just_id => count,
            _ => count + 1,
        };
        group.give(id, Pending { consumer, delivered_ms: delivered, deliveries: count });
        claimed.push(if just_id { id_value(id) } else { entry_value(entry) });
    }
    put_back(stream, name, kept);
    Ok(Value::Array(claimed))
}

pub(crate) fn xautoclaim(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let (key, name, now) = (at(arguments, 1), at(arguments, 2), now_ms as i64);
    let least_idle = integer(at(arguments, 4))
        .map_err(|_| Refusal("ERR Invalid min-idle-time argument for XAUTOCLAIM".to_owned()))?
        .max(0);
    let start = interval_start(at(arguments, 5))?;
    let (mut count, mut just_id) = (100, false);
    let mut options = after(arguments, 6).iter();
    while let Some(option) = options.next() {
        if is(option, "JUSTID") {
            just_id = true;
        } else if is(option, "COUNT")
            && let Some(text) = options.next()
        {
            count = integer(text)
                .ok()
                .filter(|count| *count > 0)
                .ok_or_else(|| Refusal("ERR COUNT must be > 0".to_owned()))?;
        } else {
            return syntax_error();
        }
    }
    let Some(stream) = model.keys.stream_mut(key)?.filter(|stream| stream.groups.contains_key(name)) else {
        return no_group(key, name);
    };
    let Some(mut kept) = take_group(stream, name) else { return no_group(key, name) };
    let group = Arc::make_mut(&mut kept);
    let (mut claimed, mut deleted, mut claimer) = (Vec::new(), Vec::new(), None);
    let mut attempts = count.saturating_mul(10);
    let mut from = Some(start);
    while attempts > 0 && count > 0 {
        attempts -= 1;
        let next = from.and_then(|from| group.pending.range(from..).next());
        let Some((&id, pending)) = next else { break };
        let (idle, deliveries) = (now - pending.delivered_ms, pending.deliveries);
        from = id.next();
        let Some(entry) = stream.entry(id) else {
            group.release(id);
            deleted.push(id_value(id));
            count -= 1;
            continue;
        };
        if least_idle > 0 && idle < least_idle {
            continue;
        }
        let consumer = claimer.get_or_insert_with(|| group.meet(at(arguments, 3), now)).clone();
        let deliveries = deliveries + i64::from(!just_id);
        group.give(id, Pending { consumer, delivered_ms: now, deliveries });
        claimed.push(if just_id { id_value(id) } else { entry_value(entry) });
        count -= 1;
    }
    let cursor = from.and_then(|from| group.pending.range(from..).next()).map_or(Id::MIN, |(id, _)| *id);
    put_back(stream, name, kept);
    Ok(Value::Array(vec![id_value(cursor), Value::Array(claimed), Value::Array(deleted)]))
}

pub(crate) fn xpending(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let (key, name) = (at(arguments, 1), at(arguments, 2));
    let mut place = 3;
    let mut least_idle = 0;
    if arguments.len() > 3 {
        if arguments.len() < 6 {
            return syntax_error();
        }
        if is(at(arguments, 3), "IDLE") {
            least_idle = integer(at(arguments, 4))?;
            if arguments.len() < 8 {
                return syntax_error();
            }
            place = 5;
        }
        if arguments.len() > place + 4 {
            return syntax_error();
        }
    }
    let asked = if arguments.len() > 3 {
        let count = integer(at(arguments, place + 2))?.max(0) as usize;
        Some((interval_start(at(arguments, place))?, interval_end(at(arguments, place + 1))?, count))
    } else {
        None
    };
    let Some(group) = model.keys.stream(key)?.and_then(|stream| stream.groups.get(name)) else {
        return no_group(key, name);
    };
    let Some((start, end, count)) = asked else { return Ok(pending_summary(group)) };
    let now = now_ms as i64;
    let mut listed = Vec::new();
    let mut list = |id: Id, pending: &Pending| {
        let idle = now - pending.delivered_ms;
        if least_idle == 0 || idle >= least_idle {
            let (consumer, idle) = (bulk(&pending.consumer), Value::Int(idle.max(0)));
            listed.push(Value::Array(vec![id_value(id), consumer, idle, Value::Int(pending.deliveries)]));
        }
        listed.len() < count
    };
    if start > end || count == 0 {
        return Ok(Value::Array(Vec::new()));
    }
    if let Some(consumer) = arguments.get(place + 3) {
        let held = group.consumers.get(*consumer).map(|consumer| &consumer.pending);
        for id in held.into_iter().flat_map(|held| held.range(start..=end)) {
            if group.pending.get(id).is_some_and(|pending| !list(*id, pending)) {
                break;
            }
        }
    } else {
        for (id, pending) in group.pending.range(start..=end) {
            if !list(*id, pending) {
                break;
            }
        }
    }
    Ok(Value::Array(listed))
}

fn pending_summary(group: &Group) -> Value {
    let (Some((first, _)), Some((last, _))) = (group.pending.first_key_value(), group.pending.last_key_value()) else {
        return Value::Array(vec![Value::Int(0), Value::Nil, Value::Nil, Value::Nil]);
    };
    let holders = group.consumers.iter().filter(|(_, consumer)| !consumer.pending.is_empty());
    let holders = holders
        .map(|(name, consumer)| Value::Array(vec![bulk(name), bulk(consumer.pending.len().to_string().as_bytes())]));
    let count = Value::Int(group.pending.len() as i64);
    Value::Array(vec![count, id_value(*first), id_value(*last), Value::Array(holders.collect())])
}

const NO_KEY: &str = "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the \
                      MKSTREAM option to create an empty stream automatically.";

/// MKSTREAM and ENTRIESREAD, after the four words of an XGROUP.
fn group_options(arguments: &[&[u8]], creating: bool) -> Result<(bool, Option<i64>), Refusal> {
    let (mut make, mut read) = (false, None);
    let mut options = after(arguments, 5).iter();
    while let Some(option) = options.next() {
        if creating && is(option, "MKSTREAM") {
            make = true;
        } else if is(option, "ENTRIESREAD")
            && let Some(text) = options.next()
        {
            let count = integer(text)?;
            if count < -1 {
                return refuse("ERR value for ENTRIESREAD must be positive or -1");
            }
            read = Some(count).filter(|count| *count >= 0);
        } else {
            let sub = String::from_utf8_lossy(at(arguments, 1));
            return refuse(format!(
                "ERR unknown subcommand or wrong number of arguments for '{sub}'. Try XGROUP HELP."
            ));
        }
    }
    Ok((make, read))
}

fn group_position(stream: Option<&Stream>, text: &[u8]) -> Result<Id, Refusal> {
    match text {
        b"$" => Ok(stream.map_or(Id::MIN, |stream| stream.last_id)),
        _ => strict_id(text, 0),
    }
}

pub(crate) fn group_create(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let (key, name) = (at(arguments, 2), at(arguments, 3));
    let (make, entries_read) = group_options(arguments, true)?;
    let stream = model.keys.stream(key)?;
    if stream.is_none() && !make {
        return refuse(NO_KEY);
    }
    let last_id = group_position(stream, at(arguments, 4))?;
    let stream = model.keys.stream_or_new(key)?;
    if stream.groups.contains_key(name) {
        return refuse("BUSYGROUP Consumer Group name already exists");
    }
    stream.groups.insert(name.into(), Arc::new(Group { last_id, entries_read, ..Group::default() }));
    Ok(Value::Okay)
}

fn with_group<'a>(model: &'a mut Model, key: &[u8], name: &[u8]) -> Result<&'a mut Group, Refusal> {
    let Some(stream) = model.keys.stream_mut(key)? else { return refuse(NO_KEY) };
    match stream.groups.get_mut(name) {
        Some(group) => Ok(Arc::make_mut(group)),
        None => no_group_of_key(key, name),
    }
}

pub(crate) fn group_set_id(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let (key, name) = (at(arguments, 2), at(arguments, 3));
    let (_, entries_read) = group_options(arguments, false)?;
    with_group(model, key, name)?;
    let last_id = group_position(model.keys.stream(key)?, at(arguments, 4))?;
    let group = with_group(model, key, name)?;
    (group.last_id, group.entries_read) = (last_id, entries_read);
    Ok(Value::Okay)
}

pub(crate) fn group_destroy(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let Some(stream) = model.keys.stream_mut(at(arguments, 2))? else { return refuse(NO_KEY) };
    Ok(Value::Int(i64::from(stream.groups.remove(at(arguments, 3)).is_some())))
}

pub(crate) fn group_create_consumer(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let (group, name) = (with_group(model, at(arguments, 2), at(arguments, 3))?, at(arguments, 4));
    if group.consumers.contains_key(name) {
        return Ok(Value::Int(0));
    }
    group.meet(name, now_ms as i64);
    Ok(Value::Int(1))
}

pub(crate) fn group_drop_consumer(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let group = with_group(model, at(arguments, 2), at(arguments, 3))?;
    Ok(Value::Int(group.drop_consumer(at(arguments, 4)) as i64))
}

fn existing<'a>(model: &'a Model, key: &[u8]) -> Result<&'a Stream, Refusal> {
    match model.keys.get(key) {
        None => refuse("ERR no such key"),
        Some(Object::Stream(stream)) => Ok(stream),
        Some(_) => refuse(crate::keyspace::WRONG_TYPE),
    }
}

fn described<const N: usize>(facts: [(&str, Value); N]) -> Value {
    Value::Array(facts.into_iter().flat_map(|(name, value)| [bulk(name.as_bytes()), value]).collect())
}

pub(crate) fn info_stream(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let stream = existing(model, at(arguments, 2))?;
    if arguments.len() > 3 {
        return syntax_error();
    }
    let int = |count: u64| Value::Int(count as i64);
    Ok(described([
        ("length", int(stream.length)),
        ("radix-tree-keys", int(stream.nodes() as u64)),
        ("radix-tree-nodes", int(stream.nodes() as u64 + 1)),
        ("last-generated-id", id_value(stream.last_id)),
        ("max-deleted-entry-id", id_value(stream.max_deleted_id)),
        ("entries-added", int(stream.entries_added)),
        ("recorded-first-entry-id", id_value(stream.first_id)),
        ("groups", int(stream.groups.len() as u64)),
        ("first-entry", stream.first().map_or(Value::Nil, entry_value)),
        ("last-entry", stream.last().map_or(Value::Nil, entry_value)),
    ]))
}

pub(crate) fn info_groups(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let stream = existing(model, at(arguments, 2))?;
    let groups = stream.groups.iter().map(|(name, group)| {
        described([
            ("name", bulk(name)),
            ("consumers", Value::Int(group.consumers.len() as i64)),
            ("pending", Value::Int(group.pending.len() as i64)),
            ("last-delivered-id", id_value(group.last_id)),
            ("entries-read", group.entries_read.map_or(Value::Nil, Value::Int)),
            ("lag", stream.lag(group).map_or(Value::Nil, Value::Int)),
        ])
    });
    Ok(Value::Array(groups.collect()))
}

pub(crate) fn info_consumers(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let (key, name) = (at(arguments, 2), at(arguments, 3));
    let Some(group) = existing(model, key)?.groups.get(name) else { return no_group_of_key(key, name) };
    let consumers = group.consumers.iter().map(|(name, consumer)| {
        described([
            ("name", bulk(name)),
            ("pending", Value::Int(consumer.pending.len() as i64)),
            ("idle", Value::Int((now_ms as i64 - consumer.seen_ms).max(0))),
        ])
    });
    Ok(Value::Array(consumers.collect()))
}
