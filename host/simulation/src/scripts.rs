//! The scripts of a server, run by the Lua that Redis embeds, with the functions that Redis gives to scripts.
//!
//! There is one Lua state a thread, for all models. A model is moved into it for the time of a call and moved back afterwards.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use mlua::{BString, Function, Lua, LuaOptions, StdLib, Table, Value as LuaValue, Variadic};
use redis::Value;

use crate::command::{Denied, after, at, integer};
use crate::{Model, Refusal, Reply, command, refuse};

/// The scripts that a server has been taught, by their digest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Library {
    texts: Arc<BTreeMap<String, Arc<str>>>,
}

/// What a script's header says of it.
#[derive(Clone, Copy, Debug, Default)]
struct Header {
    /// Whether there is one.
    present: bool,
    allows_out_of_memory: bool,
    only_reads: bool,
}

/// A server lent to the script that runs, with what holds for the commands of that script.
struct Lent {
    model: Model,
    now_ms: u64,
    header: Header,
    /// Whether the script has called a command that writes.
    wrote: bool,
}

struct Engine {
    lua: Lua,
    /// Runs a script's function and says whether it came to its end.
    run: Function,
    lent: Rc<RefCell<Option<Lent>>>,
    functions: HashMap<String, (Function, Header)>,
}

thread_local! {
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

pub(crate) fn load(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let sha = learn(model, at(arguments, 2))?;
    Ok(Value::BulkString(sha.into_bytes()))
}

pub(crate) fn exists(model: &mut Model, _: u64, arguments: &[&[u8]]) -> Reply {
    let known = |sha: &&[u8]| model.library.texts.contains_key(&String::from_utf8_lossy(sha).to_lowercase());
    Ok(Value::Array(after(arguments, 2).iter().map(|sha| Value::Int(i64::from(known(sha)))).collect()))
}

pub(crate) fn flush(model: &mut Model, _: u64, _: &[&[u8]]) -> Reply {
    model.library = Library::default();
    Ok(Value::Okay)
}

pub(crate) fn eval(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let keys = number_of_keys(arguments)?;
    let sha = learn(model, at(arguments, 1))?;
    call(model, now_ms, &sha, (keys, after(arguments, 3)))
}

pub(crate) fn evalsha(model: &mut Model, now_ms: u64, arguments: &[&[u8]]) -> Reply {
    let keys = number_of_keys(arguments)?;
    let sha = String::from_utf8_lossy(at(arguments, 1)).to_lowercase();
    if !model.library.texts.contains_key(&sha) {
        return refuse("NOSCRIPT No matching script. Please use EVAL.");
    }
    call(model, now_ms, &sha, (keys, after(arguments, 3)))
}

/// What an EVAL or EVALSHA will do, as far as the header of its script says.
pub(crate) fn announced(model: &Model, arguments: &[&[u8]]) -> Option<Announced> {
    let first = at(arguments, 1);
    let text = if at(arguments, 0).eq_ignore_ascii_case(b"EVAL") {
        std::str::from_utf8(first).ok()?
    } else {
        model.library.texts.get(&String::from_utf8_lossy(first).to_lowercase())?
    };
    let header = header(text).ok().filter(|header| header.present)?;
    let writes = !header.only_reads;
    Some(Announced { writes, needs_memory: writes && !header.allows_out_of_memory })
}

/// Whether a script writes, and whether it needs memory.
pub(crate) struct Announced {
    pub(crate) writes: bool,
    pub(crate) needs_memory: bool,
}

fn number_of_keys(arguments: &[&[u8]]) -> Result<usize, Refusal> {
    let keys = integer(at(arguments, 2))?;
    match usize::try_from(keys) {
        Ok(keys) if keys <= arguments.len() - 3 => Ok(keys),
        Ok(_) => refuse("ERR Number of keys can't be greater than number of args"),
        Err(_) => refuse("ERR Number of keys can't be negative"),
    }
}

fn learn(model: &mut Model, text: &[u8]) -> Result<String, Refusal> {
    let Ok(text) = std::str::from_utf8(text) else { return refuse("ERR the model takes only scripts in UTF-8") };
    let sha = redis::Script::new(text).get_hash().to_owned();
    if !model.library.texts.contains_key(&sha) {
        with_engine(|engine| engine.compile(&sha, text).map(drop))?;
        Arc::make_mut(&mut model.library.texts).insert(sha.clone(), text.into());
    }
    Ok(sha)
}

fn with_engine<T>(work: impl FnOnce(&mut Engine) -> Result<T, Refusal>) -> Result<T, Refusal> {
    ENGINE.with(|slot| {
        let mut slot = slot.borrow_mut();
        let engine = match &mut *slot {
            Some(engine) => engine,
            empty => empty.insert(Engine::new().map_err(|error| Refusal(format!("ERR no Lua: {error}")))?),
        };
        work(engine)
    })
}

fn call(model: &mut Model, now_ms: u64, sha: &str, (keys, words): (usize, &[&[u8]])) -> Reply {
    let Some(text) = model.library.texts.get(sha).cloned() else {
        return refuse("NOSCRIPT No matching script. Please use EVAL.");
    };
    with_engine(|engine| {
        let (function, header) = engine.compile(sha, &text)?;
        let lent = Lent { model: std::mem::take(model), now_ms, header, wrote: false };
        *engine.lent.borrow_mut() = Some(lent);
        let (keys, values) = words.split_at(keys);
        let result = engine.run(&function, (keys, values));
        if let Some(lent) = engine.lent.borrow_mut().take() {
            *model = lent.model;
        }
        match result.map_err(|error| Refusal(format!("ERR {error}")))? {
            (true, value) => reply_of(value).unwrap_or_else(|error| refuse(format!("ERR {error}"))),
            (false, error) => refuse(failure(sha, &error)),
        }
    })
}

/// The error reply of a script that raised an error, with where it was raised.
fn failure(sha: &str, error: &LuaValue) -> String {
    let place = |line: &str| format!(" script: {sha}, on @user_script:{line}.");
    if let LuaValue::Table(table) = error {
        let text: String =
            table.raw_get::<BString>("err").map_or_else(|_| "ERR unknown error".into(), |text| text.to_string());
        let line =
            table.raw_get::<Option<i64>>("line").ok().flatten().map_or_else(String::new, |line| line.to_string());
        return format!("{text}{}", place(&line));
    }
    let text = match error {
        LuaValue::String(text) => text.to_string_lossy(),
        LuaValue::Error(error) => error.to_string(),
        other => format!("{other:?}"),
    };
    let line = text.strip_prefix("user_script:").and_then(|rest| rest.split(':').next()).unwrap_or_default();
    format!("ERR {text}{}", place(line))
}

/// Reads the first line of a script.
fn header(text: &str) -> Result<Header, Refusal> {
    let mut header = Header::default();
    let Some(line) = text.strip_prefix("#!").map(|rest| rest.lines().next().unwrap_or_default()) else {
        return Ok(header);
    };
    let mut words = line.split_whitespace();
    if words.next() != Some("lua") {
        return refuse(format!("ERR Unexpected engine in script shebang: {line}"));
    }
    header.present = true;
    for word in words {
        let Some(flags) = word.strip_prefix("flags=") else {
            return refuse(format!("ERR Unknown lua shebang option: {word}"));
        };
        for flag in flags.split(',') {
            match flag {
                "allow-oom" => header.allows_out_of_memory = true,
                "no-writes" => header.only_reads = true,
                "allow-stale" | "no-cluster" | "allow-cross-slot-keys" => {}
                other => return refuse(format!("ERR Unexpected flag in script shebang: {other}")),
            }
        }
    }
    Ok(header)
}

impl Engine {
    fn new() -> mlua::Result<Self> {
        let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH;
        let lua = Lua::new_with(libraries, LuaOptions::new())?;
        let lent: Rc<RefCell<Option<Lent>>> = Rc::default();
        let server = lent.clone();
        let raw = lua.create_function(move |lua, arguments: Variadic<LuaValue>| {
            let mut server = server.borrow_mut();
            let reply = match &mut *server {
                Some(lent) => lent.call(&arguments),
                None => refuse("ERR no script is running"),
            };
            match reply {
                Ok(value) => Ok((true, lua_of(lua, value)?)),
                Err(Refusal(text)) => Ok((false, LuaValue::String(lua.create_string(text)?))),
            }
        })?;
        let run = lua.load(PRELUDE).set_name("=prelude").call::<Function>((
            raw,
            lua.create_function(|lua, value: LuaValue| {
                let mut text = Vec::new();
                json::encode(&value, &mut text, 0)?;
                lua.create_string(text)
            })?,
            lua.create_function(|lua, text: BString| json::decode(lua, &text))?,
            lua.create_function(|lua, values: Variadic<LuaValue>| {
                let mut bytes = Vec::new();
                for value in values.iter() {
                    msgpack::pack(value, &mut bytes, 0)?;
                }
                lua.create_string(bytes)
            })?,
            lua.create_function(|lua, bytes: BString| {
                let (mut rest, mut values) = (bytes.as_slice(), Variadic::new());
                while !rest.is_empty() {
                    values.push(msgpack::unpack(lua, &mut rest)?);
                }
                Ok(values)
            })?,
        ))?;
        Ok(Engine { lua, run, lent, functions: HashMap::new() })
    }

    /// The function of a script, compiled when it is first asked for.
    fn compile(&mut self, sha: &str, text: &str) -> Result<(Function, Header), Refusal> {
        if let Some(found) = self.functions.get(sha) {
            return Ok(found.clone());
        }
        let header = header(text)?;
        // The header's line stays, empty, so that the lines keep their numbers.
        let body =
            if header.present { text.find('\n').and_then(|end| text.get(end..)).unwrap_or_default() } else { text };
        let function = self.lua.load(body).set_name("@user_script").into_function();
        let function =
            function.map_err(|error| Refusal(format!("ERR Error compiling script (new function): {error}")))?;
        self.functions.insert(sha.to_owned(), (function.clone(), header));
        Ok((function, header))
    }

    fn run(&self, function: &Function, (keys, values): (&[&[u8]], &[&[u8]])) -> mlua::Result<(bool, LuaValue)> {
        let list = |words: &[&[u8]]| self.lua.create_sequence_from(words.iter().map(|word| Bytes(word)));
        self.run.call((function, list(keys)?, list(values)?))
    }
}

/// Bytes on their way into Lua.
struct Bytes<'a>(&'a [u8]);

impl mlua::IntoLua for Bytes<'_> {
    fn into_lua(self, lua: &Lua) -> mlua::Result<LuaValue> {
        lua.create_string(self.0).map(LuaValue::String)
    }
}

/// Sets up what scripts see, and gives back the function that runs one. In Lua itself is what must raise errors as Lua values.
const PRELUDE: &str = r#"
local raw, encode, decode, pack, unpack_ = ...
local getmetatable, setmetatable, rawset, error, pcall, type = getmetatable, setmetatable, rawset, error, pcall, type
local sub, find = string.sub, string.find
redis = {
  LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3,
  call = function(...)
    local ok, reply = raw(...)
    if ok then return reply end
    local _, place = pcall(error, '', 3)
    error({err = reply, line = tonumber(string.match(place, ':(%d+):'))}, 0)
  end,
  pcall = function(...)
    local ok, reply = raw(...)
    if ok then return reply end
    return {err = reply}
  end,
  error_reply = function(text)
    if sub(text, 1, 1) == '-' then text = sub(text, 2) end
    if not find(text, ' ', 1, true) then text = 'ERR ' .. text end
    return {err = text}
  end,
  status_reply = function(text) return {ok = text} end,
  log = function() end,
  replicate_commands = function() return true end,
  -- Whoever talks to a model may do everything.
  acl_check_cmd = function() return true end,
  set_repl = function() end,
}
-- To scripts, what a command raised is its text.
_G.pcall = function(...)
  local results = {pcall(...)}
  if not results[1] and type(results[2]) == 'table' then results[2] = results[2].err end
  return unpack(results, 1, table.maxn(results))
end
cjson = {encode = encode, decode = decode}
cmsgpack = {pack = pack, unpack = unpack_}
local globals = _G
setmetatable(globals, {
  __index = function(_, name) error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2) end,
  __newindex = function() error('Attempt to modify a readonly table', 2) end,
})
return function(script, keys, arguments)
  rawset(globals, 'KEYS', keys)
  rawset(globals, 'ARGV', arguments)
  return pcall(script)
end
"#;

impl Lent {
    /// One redis.call.
    fn call(&mut self, arguments: &[LuaValue]) -> Reply {
        if arguments.is_empty() {
            return refuse("ERR Please specify at least one argument for this redis.call()");
        }
        let mut words = Vec::with_capacity(arguments.len());
        for argument in arguments {
            words.push(match argument {
                LuaValue::String(text) => Word::Text(text.as_bytes()),
                LuaValue::Integer(number) => Word::Number(number.to_string().into_bytes()),
                LuaValue::Number(number) => Word::Number(seventeen_digits(*number).into_bytes()),
                _ => return refuse("ERR Lua redis lib command arguments must be strings or integers"),
            });
        }
        let words: Vec<&[u8]> = words.iter().map(Word::bytes).collect();
        let known = command::known(&words, true)?;
        if known.writes && self.header.only_reads {
            return refuse("ERR Write commands are not allowed from read-only scripts.");
        }
        let checks = self.model.out_of_memory && !self.wrote && !self.header.allows_out_of_memory;
        if checks && known.needs_memory {
            return refuse(Denied::OUT_OF_MEMORY);
        }
        if self.model.read_only && known.writes {
            return refuse(Denied::READ_ONLY);
        }
        self.wrote |= known.writes;
        command::run(&mut self.model, &known, self.now_ms, &words)
    }
}

/// An argument of a redis.call, held for its time.
enum Word<'a> {
    Text(mlua::BorrowedBytes<'a>),
    Number(Vec<u8>),
}

impl Word<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Word::Text(text) => text,
            Word::Number(text) => text,
        }
    }
}

/// A number as C prints it with `%.17g`.
fn seventeen_digits(number: f64) -> String {
    significant(number, 17)
}

/// A number as C prints it with `%.<digits>g`.
fn significant(number: f64, digits: usize) -> String {
    if number.is_nan() {
        return if number.is_sign_negative() { "-nan" } else { "nan" }.to_owned();
    }
    if number.is_infinite() {
        return if number < 0.0 { "-inf" } else { "inf" }.to_owned();
    }
    let text = format!("{number:.*e}", digits - 1);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if exponent < -4 || exponent >= digits as i32 {
        let mantissa =
            if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{number:.*}", usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0));
    if plain.contains('.') { plain.trim_end_matches('0').trim_end_matches('.').to_owned() } else { plain }
}

/// A reply as a script sees it.
fn lua_of(lua: &Lua, value: Value) -> mlua::Result<LuaValue> {
    Ok(match value {
        Value::Nil => LuaValue::Boolean(false),
        Value::Int(number) => LuaValue::Number(number as f64),
        Value::BulkString(bytes) => LuaValue::String(lua.create_string(bytes)?),
        Value::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (place, item) in items.into_iter().enumerate() {
                table.raw_seti(place + 1, lua_of(lua, item)?)?;
            }
            LuaValue::Table(table)
        }
        Value::Okay => status(lua, "OK")?,
        Value::SimpleString(text) => status(lua, &text)?,
        other => return Err(mlua::Error::runtime(format!("a reply of another protocol: {other:?}"))),
    })
}

fn status(lua: &Lua, text: &str) -> mlua::Result<LuaValue> {
    let table = lua.create_table_with_capacity(0, 1)?;
    table.raw_set("ok", text)?;
    Ok(LuaValue::Table(table))
}

/// What a script returned, as the reply to its caller.
fn reply_of(value: LuaValue) -> mlua::Result<Reply> {
    Ok(Ok(match value {
        LuaValue::String(text) => Value::BulkString(text.as_bytes().to_vec()),
        LuaValue::Integer(number) => Value::Int(number),
        LuaValue::Number(number) => Value::Int(number as i64),
        LuaValue::Boolean(true) => Value::Int(1),
        LuaValue::Table(table) => {
            if let Some(text) = text_field(&table, "err")? {
                return Ok(refuse(text));
            }
            if let Some(text) = text_field(&table, "ok")? {
                return Ok(Ok(if text == "OK" { Value::Okay } else { Value::SimpleString(text) }));
            }
            let mut items = Vec::with_capacity(table.raw_len());
            loop {
                match table.raw_get(items.len() + 1)? {
                    LuaValue::Nil => break,
                    item => items.push(match reply_of(item)? {
                        Ok(item) => item,
                        Err(Refusal(text)) => error_item(&text),
                    }),
                }
            }
            Value::Array(items)
        }
        _ => Value::Nil,
    }))
}

fn text_field(table: &Table, name: &str) -> mlua::Result<Option<String>> {
    match table.raw_get(name)? {
        LuaValue::String(text) => Ok(Some(text.to_string_lossy())),
        _ => Ok(None),
    }
}

/// An error inside a list, as the client's parser gives it.
fn error_item(text: &str) -> Value {
    redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap_or(Value::Nil)
}

/// How deep a value may be nested before it is taken for a circle.
const DEPTH_MAX: usize = 100;

/// The `cjson` of scripts.
mod json {
    use super::{BString, DEPTH_MAX, Lua, LuaValue, significant};

    pub(super) fn encode(value: &LuaValue, out: &mut Vec<u8>, depth: usize) -> mlua::Result<()> {
        if depth > DEPTH_MAX {
            return Err(mlua::Error::runtime("Cannot serialise, excessive depth"));
        }
        match value {
            LuaValue::Nil | LuaValue::LightUserData(_) => out.extend_from_slice(b"null"),
            LuaValue::Boolean(truth) => out.extend_from_slice(if *truth { b"true" } else { b"false" }),
            LuaValue::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
            LuaValue::Number(number) => out.extend_from_slice(significant(*number, 14).as_bytes()),
            LuaValue::String(text) => quote(&text.as_bytes(), out),
            LuaValue::Table(table) => {
                let pairs: Vec<(LuaValue, LuaValue)> = table.pairs().collect::<mlua::Result<_>>()?;
                let length = table.raw_len();
                if length > 0 && pairs.len() == length {
                    out.push(b'[');
                    for place in 1..=length {
                        if place > 1 {
                            out.push(b',');
                        }
                        encode(&table.raw_get(place)?, out, depth + 1)?;
                    }
                    out.push(b']');
                    return Ok(());
                }
                out.push(b'{');
                for (place, (name, value)) in pairs.iter().enumerate() {
                    if place > 0 {
                        out.push(b',');
                    }
                    match name {
                        LuaValue::String(text) => quote(&text.as_bytes(), out),
                        LuaValue::Number(number) => quote(significant(*number, 14).as_bytes(), out),
                        LuaValue::Integer(number) => quote(number.to_string().as_bytes(), out),
                        _ => {
                            return Err(mlua::Error::runtime("Cannot serialise, table key must be a number or string"));
                        }
                    }
                    out.push(b':');
                    encode(value, out, depth + 1)?;
                }
                out.push(b'}');
            }
            other => {
                return Err(mlua::Error::runtime(format!(
                    "Cannot serialise {}: type not supported",
                    other.type_name()
                )));
            }
        }
        Ok(())
    }

    fn quote(text: &[u8], out: &mut Vec<u8>) {
        out.push(b'"');
        for byte in text {
            match byte {
                b'"' | b'\\' | b'/' => out.extend_from_slice(&[b'\\', *byte]),
                8 => out.extend_from_slice(b"\\b"),
                9 => out.extend_from_slice(b"\\t"),
                10 => out.extend_from_slice(b"\\n"),
                12 => out.extend_from_slice(b"\\f"),
                13 => out.extend_from_slice(b"\\r"),
                0..32 | 127 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => out.push(*byte),
            }
        }
        out.push(b'"');
    }

    pub(super) fn decode(lua: &Lua, text: &BString) -> mlua::Result<LuaValue> {
        let value = serde_json::from_slice(text).map_err(mlua::Error::external)?;
        lua_of(lua, &value)
    }

    fn lua_of(lua: &Lua, value: &serde_json::Value) -> mlua::Result<LuaValue> {
        Ok(match value {
            serde_json::Value::Null => LuaValue::NULL,
            serde_json::Value::Bool(truth) => LuaValue::Boolean(*truth),
            serde_json::Value::Number(number) => LuaValue::Number(number.as_f64().unwrap_or(0.0)),
            serde_json::Value::String(text) => LuaValue::String(lua.create_string(text)?),
            serde_json::Value::Array(items) => {
                let table = lua.create_table()?;
                for item in items {
                    table.raw_push(lua_of(lua, item)?)?;
                }
                LuaValue::Table(table)
            }
            serde_json::Value::Object(pairs) => {
                let table = lua.create_table()?;
                for (name, item) in pairs {
                    table.raw_set(name.as_str(), lua_of(lua, item)?)?;
                }
                LuaValue::Table(table)
            }
        })
    }
}

/// The `cmsgpack` of scripts.
mod msgpack {
    use super::{DEPTH_MAX, Lua, LuaValue};

    /// A length in the smallest of its forms: within the tag, or after it in 1, 2 or 4 bytes.
    fn length(out: &mut Vec<u8>, count: usize, (small, below): (u8, usize), tags: [Option<u8>; 3]) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let bytes = count.to_be_bytes();
        match tags {
            _ if (count as usize) < below => out.push(small | bytes[3]),
            [Some(tag), ..] if count <= 0xff => out.extend_from_slice(&[tag, bytes[3]]),
            [_, Some(tag), _] if count <= 0xffff => out.extend_from_slice(&[tag, bytes[2], bytes[3]]),
            [.., tag] => {
                out.extend(tag);
                out.extend_from_slice(&bytes);
            }
        }
    }

    pub(super) fn pack(value: &LuaValue, out: &mut Vec<u8>, depth: usize) -> mlua::Result<()> {
        if depth > DEPTH_MAX {
            return Err(mlua::Error::runtime("nested too deeply to be packed"));
        }
        match value {
            LuaValue::Boolean(truth) => out.push(if *truth { 0xc3 } else { 0xc2 }),
            LuaValue::Integer(number) => integer(*number, out),
            LuaValue::Number(number) if number.fract() == 0.0 && number.abs() < 9e18 => integer(*number as i64, out),
            LuaValue::Number(number) if f64::from(*number as f32) == *number => {
                out.push(0xca);
                out.extend_from_slice(&(*number as f32).to_be_bytes());
            }
            LuaValue::Number(number) => {
                out.push(0xcb);
                out.extend_from_slice(&number.to_be_bytes());
            }
            LuaValue::String(text) => {
                let text = text.as_bytes();
                length(out, text.len(), (0xa0, 32), [Some(0xd9), Some(0xda), Some(0xdb)]);
                out.extend_from_slice(&text);
            }
            LuaValue::Table(table) => {
                let pairs: Vec<(LuaValue, LuaValue)> = table.pairs().collect::<mlua::Result<_>>()?;
                let items = table.raw_len();
                if pairs.len() == items && items > 0 {
                    length(out, items, (0x90, 16), [None, Some(0xdc), Some(0xdd)]);
                    for place in 1..=items {
                        pack(&table.raw_get(place)?, out, depth + 1)?;
                    }
                } else {
                    length(out, pairs.len(), (0x80, 16), [None, Some(0xde), Some(0xdf)]);
                    for (name, value) in &pairs {
                        pack(name, out, depth + 1)?;
                        pack(value, out, depth + 1)?;
                    }
                }
            }
            _ => out.push(0xc0),
        }
        Ok(())
    }

    fn integer(number: i64, out: &mut Vec<u8>) {
        match number {
            0..=127 => out.push(number as u8),
            128..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
            0x100..=0xffff => {
                out.push(0xcd);
                out.extend_from_slice(&(number as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                out.push(0xce);
                out.extend_from_slice(&(number as u32).to_be_bytes());
            }
            0x1_0000_0000.. => {
                out.push(0xcf);
                out.extend_from_slice(&number.to_be_bytes());
            }
            -32..0 => out.push(number as u8),
            -128..-32 => out.extend_from_slice(&[0xd0, number as u8]),
            -32_768..-128 => {
                out.push(0xd1);
                out.extend_from_slice(&(number as i16).to_be_bytes());
            }
            -2_147_483_648..-32_768 => {
                out.push(0xd2);
                out.extend_from_slice(&(number as i32).to_be_bytes());
            }
            _ => {
                out.push(0xd3);
                out.extend_from_slice(&number.to_be_bytes());
            }
        }
    }

    fn take<'a>(rest: &mut &'a [u8], count: usize) -> mlua::Result<&'a [u8]> {
        let (head, tail) =
            rest.split_at_checked(count).ok_or_else(|| mlua::Error::runtime("Missing bytes in input."))?;
        *rest = tail;
        Ok(head)
    }

    fn number(rest: &mut &[u8], bytes: usize) -> mlua::Result<u64> {
        Ok(take(rest, bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    pub(super) fn unpack(lua: &Lua, rest: &mut &[u8]) -> mlua::Result<LuaValue> {
        let tag = number(rest, 1)? as u8;
        let count = match tag {
            0x80..=0x9f => usize::from(tag & 0x0f),
            0xa0..=0xbf => usize::from(tag & 0x1f),
            0xc4 | 0xd9 => number(rest, 1)? as usize,
            0xc5 | 0xda | 0xdc | 0xde => number(rest, 2)? as usize,
            0xc6 | 0xdb | 0xdd | 0xdf => number(rest, 4)? as usize,
            _ => 0,
        };
        Ok(match tag {
            0..=0x7f => LuaValue::Number(f64::from(tag)),
            0xe0.. => LuaValue::Number(f64::from(tag as i8)),
            0xc0 => LuaValue::Nil,
            0xc2 | 0xc3 => LuaValue::Boolean(tag == 0xc3),
            0xca => LuaValue::Number(f64::from(f32::from_bits(number(rest, 4)? as u32))),
            0xcb => LuaValue::Number(f64::from_bits(number(rest, 8)?)),
            0xcc..=0xcf => LuaValue::Number(number(rest, 1 << (tag - 0xcc))? as f64),
            0xd0 => LuaValue::Number(f64::from(number(rest, 1)? as i8)),
            0xd1 => LuaValue::Number(f64::from(number(rest, 2)? as i16)),
            0xd2 => LuaValue::Number(f64::from(number(rest, 4)? as i32)),
            0xd3 => LuaValue::Number(number(rest, 8)? as i64 as f64),
            0xa0..=0xbf | 0xd9..=0xdb | 0xc4..=0xc6 => LuaValue::String(lua.create_string(take(rest, count)?)?),
            0x90..=0x9f | 0xdc | 0xdd => {
                let table = lua.create_table()?;
                for place in 1..=count {
                    table.raw_seti(place, unpack(lua, rest)?)?;
                }
                LuaValue::Table(table)
            }
            0x80..=0x8f | 0xde | 0xdf => {
                let table = lua.create_table()?;
                for _ in 0..count {
                    let name = unpack(lua, rest)?;
                    table.raw_set(name, unpack(lua, rest)?)?;
                }
                LuaValue::Table(table)
            }
            _ => return Err(mlua::Error::runtime("Bad data format in input.")),
        })
    }
}
