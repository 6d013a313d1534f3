//! What is asked of both sides: random commands, and every script with arguments that may be right.

use redis::Value;

use crate::{CONSUMERS, DEAD, Dice, OUTPUTS, Pair, Push, RETRY, STREAMS, TEXTS, Words, words};

/// Makes up what is done next.
pub(crate) struct Author<'a, 'b> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) pair: &'a mut Pair<'b>,
    pub(crate) next_id: &'a mut u64,
}

impl Author<'_, '_> {
    fn some_id(&mut self) -> String {
        let ms = self.dice.below(*self.next_id + 3);
        match self.dice.below(8) {
            0 => ms.to_string(),
            1 => format!("{ms}-1"),
            _ => format!("{ms}-0"),
        }
    }

    fn bound(&mut self, open: &str) -> String {
        match self.dice.below(4) {
            0 | 1 => open.to_owned(),
            2 => self.some_id(),
            _ => format!("({}", self.some_id()),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        match self.dice.below(6) {
            0 => self.dice.below(100_000_000_000).to_string().into_bytes(),
            1 => vec![0xff, 0, b'\r', b'\n', b'"', self.dice.below(256) as u8],
            2 => vec![b'x'; self.dice.below(700) as usize],
            3 => vec![b'y'; self.dice.below(70) as usize],
            _ => format!("v{}", self.dice.below(9)).into_bytes(),
        }
    }

    pub(crate) fn add(&mut self, stream: &str) -> Words {
        let mut command = words(&format!("XADD {stream}"));
        if self.dice.one_in(20) {
            command.push_word("NOMKSTREAM");
        }
        match self.dice.below(40) {
            0 => command.extend(words(&format!("MAXLEN {}", self.dice.below(60)))),
            1 => command.extend(words(&format!("MAXLEN ~ {}", self.dice.below(60)))),
            2 => command.extend(words(&format!("MINID = {}", self.some_id()))),
            3 => command.extend(words(&format!("MINID ~ {} LIMIT {}", self.some_id(), self.dice.below(200)))),
            4 => command.extend(words("MAXLEN 10 LIMIT 5")),
            _ => {}
        }
        if !self.dice.one_in(3) {
            *self.next_id += 1;
        }
        let ms = *self.next_id;
        match self.dice.below(20) {
            0 => command.push_word(self.some_id()),
            1 => command.push_word(format!("{ms}-*")),
            2 => command.push_word("0-0"),
            3 => command.push_word(format!("{ms}-{}", self.dice.below(400))),
            _ => {
                *self.next_id += 1;
                command.push_word(format!("{}-0", *self.next_id))
            }
        };
        for field in 0..self.dice.below(3) + 1 {
            command.push_word(if self.dice.one_in(4) {
                format!("f{}", self.dice.below(5))
            } else {
                format!("n{field}")
            });
            let value = self.value();
            command.push(value);
        }
        if self.dice.one_in(60) {
            command.pop();
        }
        command
    }

    /// Pending entries of a consumer, with their tokens; now and then a wrong one.
    fn held(&mut self, stream: &str, group: &str, consumer: &str) -> Vec<(String, String)> {
        let listed = self.pair.look(&words(&format!("XPENDING {stream} {group} - + 100 {consumer}")));
        let mut held = Vec::new();
        for item in listed {
            let Value::Array(parts) = item else { continue };
            let [Value::BulkString(id), _, _, Value::Int(count)] = parts.as_slice() else { continue };
            let id = String::from_utf8_lossy(id).into_owned();
            let id = if self.dice.one_in(15) && !self.made(&id) { self.some_id() } else { id };
            let token = if self.dice.one_in(8) { count + 1 } else { *count };
            if !self.dice.one_in(3) && held.len() < 8 && !self.made(&id) {
                held.push((id, token.to_string()));
            }
        }
        if self.dice.one_in(6)
            && let Some(first) = held.first().cloned()
        {
            held.push(first);
        }
        held
    }

    /// Whether an id is one that the server made: those differ between the sides.
    fn made(&self, id: &str) -> bool {
        id.len() > 13
    }

    fn script(&mut self, name: &str, keys: &[&str]) -> Words {
        let (_, text) = TEXTS.iter().find(|(script, _)| *script == name).unwrap();
        let sha = redis::Script::new(text).get_hash().to_owned();
        let mut command = words(&format!("EVALSHA {sha} {}", keys.len()));
        for key in keys {
            command.push_word(key);
        }
        command
    }

    fn settle(&mut self, (stream, group, consumer): (&str, &str, &str)) -> Words {
        let held = self.held(stream, group, consumer);
        let mut outputs = vec![self.dice.pick(&OUTPUTS[..2])];
        if self.dice.one_in(3) {
            outputs = vec!["out1", "out2"];
        }
        if self.dice.one_in(12) {
            outputs.push("ledger");
        }
        let mut keys = vec![stream, "ledger", "park", DEAD];
        if self.dice.one_in(40) {
            keys[3] = "park";
        }
        keys.extend(&outputs);
        let mut call = self.script("settle", &keys);
        let delete = u8::from(self.dice.one_in(3));
        let mut ids: Vec<&String> = held.iter().map(|(id, _)| id).collect();
        ids.sort_by_key(|id| id.split('-').map(|part| part.parse::<u64>().unwrap_or(0)).collect::<Vec<_>>());
        let (first, last) = (ids.first().map_or("0-0", |id| id.as_str()), ids.last().map_or("0-0", |id| id.as_str()));
        call.extend(words(&format!("{group} {consumer} {first} {last} 100000 {delete} 2026-11-24T10:00:00.000000")));
        let epoch = self.epoch();
        let finished = if epoch.is_empty() { "" } else { self.dice.pick(&["0", "0", "1", "2"]) };
        call.push_word(epoch).push_word(finished);
        call.extend(words("2 plug digest1 config1 plug digest2 config2"));
        call.push_word(held.len());
        for (id, token) in &held {
            call.push_word(id).push_word(token);
            if self.dice.one_in(4) {
                call.extend(words("-1 4 payload {\"x\":1} code trap"));
                continue;
            }
            let count = self.dice.below(4);
            call.push_word(count).push_word(self.dice.below(2) + 1).push_word(self.dice.below(3));
            for output in 0..count {
                call.push_word(self.dice.below(outputs.len() as u64) + 1).push_word(format!("m{output}"));
                let payload = self.value();
                call.push(payload);
                call.extend(words("3 s/1-0/0/1"));
                if self.dice.one_in(2) { call.extend(words("2 key k")) } else { call.extend(words("0")) }
            }
        }
        call
    }

    fn park(&mut self, (stream, group, consumer): (&str, &str, &str)) -> Words {
        let held = self.held(stream, group, consumer);
        let mut call = self.script("park", &[stream, "ledger", "park"]);
        call.extend(words(&format!("{group} {consumer} {RETRY} 86400000")));
        call.push_word(held.len());
        for (id, token) in held {
            call.push_word(id).push_word(token).push_word(self.dice.pick(&[0, 40_000_000]));
            call.push_word(self.dice.pick(&["retried", "released"])).push_word(self.dice.pick(&["", "[[1,2]]", "{}"]));
        }
        call
    }

    fn take(&mut self, (stream, group, consumer): (&str, &str, &str)) -> Words {
        let keys = [stream, "ledger", "park", DEAD, STREAMS[2]];
        let mut call = self.script("take", &keys);
        let (from, idle) =
            self.dice.pick(&[(RETRY, 86_400_000u64), ("c1", 0), ("c2", 3_600_000), ("c1", 3_600_000), (RETRY, 0)]);
        call.extend(words(&format!(
            "{group} {consumer} {from} {idle} {} 2026-11-24T10:00:00 plug",
            self.dice.below(5) + 1
        )));
        call.push_word(self.epoch()).push_word(0);
        call
    }

    /// The epoch of an owner; of none for most.
    fn epoch(&mut self) -> &'static str {
        self.dice.pick(&["", "", "", "1", "2"])
    }

    /// What only the owner of a lane that keeps an order does, or whoever wants to become it.
    fn own(&mut self, (stream, group, consumer): (&str, &str, &str)) -> Words {
        let epoch = self.dice.pick(&["", "1", "2", "3"]);
        let mut call = match self.dice.below(5) {
            0 | 1 => {
                let silent = self.dice.pick(&["", "c1|1|0", "c2|1|0", "c1|2|1", "c2|2|0"]);
                let mut call = self.script("own", &["ledger"]);
                call.push_word(consumer).push_word(epoch).push_word(silent).push_word(self.dice.pick(&[0, 0, 3]));
                return call;
            }
            2 => self.script("disown", &["ledger"]),
            3 => {
                let mut call = self.script("read", &[stream, "ledger"]);
                call.push_word(group).push_word(consumer).push_word(epoch).push_word(self.dice.below(6));
                return call;
            }
            _ => {
                let mut call = self.script("entries", &[stream, "park"]);
                for _ in 0..self.dice.below(4) {
                    let id = self.some_id();
                    call.push_word(id);
                }
                return call;
            }
        };
        call.push_word(consumer).push_word(epoch);
        call
    }

    fn heartbeat(&mut self, (stream, group, consumer): (&str, &str, &str)) -> Words {
        let held = self.held(stream, group, consumer);
        let mut call = self.script("heartbeat", &[stream]);
        call.extend(words(&format!("{group} {consumer} - + 100000 {}", held.len())));
        for (id, token) in held {
            call.push_word(id).push_word(token);
        }
        call
    }

    fn redrive(&mut self) -> Words {
        // The ids of dead letters differ between the sides: a letter that both know has an explicit id.
        let from = self.dice.pick(&["in1", "in2"]);
        let log = self.dice.pick(&OUTPUTS[..2]);
        let mut call = self.script("redrive", &[from, STREAMS[2], "ledger", log]);
        let id = self.some_id();
        call.push_word(id).push_word("g1");
        call.extend(words("4 cofferdam_stream in1 payload x verb dlq.redrive"));
        call
    }

    fn discard(&mut self) -> Words {
        let (from, log) = (self.dice.pick(&["in1", "in2"]), self.dice.pick(&OUTPUTS[..2]));
        let mut call = self.script("discard", &[from, "ledger", log]);
        let id = self.some_id();
        call.push_word(id);
        call.extend(words("verb dlq.discard"));
        call
    }

    fn claim(&mut self, (stream, group, consumer): (&str, &str, &str)) -> Words {
        let idle = self.dice.pick(&[0, 0, 0, 3_600_000, -5]);
        let mut command = words(&format!("XCLAIM {stream} {group} {consumer} {idle}"));
        let from = self.dice.pick(&CONSUMERS);
        let held = self.held(stream, group, from);
        for (id, _) in held.into_iter().take(3) {
            command.push_word(id);
        }
        let id = self.some_id();
        command.push_word(id);
        for option in [
            "FORCE",
            "JUSTID",
            "RETRYCOUNT 4",
            "RETRYCOUNT 0",
            "IDLE 7200000",
            "TIME 1000",
            "TIME 99999999999999",
            "LASTID 7-0",
        ] {
            if self.dice.one_in(6) {
                command.extend(words(option));
            }
        }
        if self.dice.one_in(40) {
            command.push_word("NONSENSE");
        }
        command
    }

    pub(crate) fn command(&mut self) -> Vec<Words> {
        let stream = self.dice.pick(&["in1", "in1", "in1", "in2", "in2", STREAMS[2]]);
        let (group, consumer) = (self.dice.pick(&["g1", "g1", "g2"]), self.dice.pick(&["c1", "c1", "c2", RETRY]));
        let lane = (stream, group, consumer);
        let own = if stream == STREAMS[2] { "in1" } else { stream };
        let id = self.some_id();
        let count = self.dice.below(12);
        vec![match self.dice.below(121) {
            0..12 => self.add(own),
            12..15 => return (0..self.dice.below(130) + 1).map(|_| self.add(own)).collect(),
            15..28 => words(&format!("XREADGROUP GROUP {group} {consumer} COUNT {count} STREAMS {stream} >")),
            28 => words(&format!("XREADGROUP GROUP {group} {consumer} STREAMS in1 in2 > >")),
            29..31 => words(&format!("XREADGROUP GROUP {group} {consumer} COUNT {count} STREAMS {stream} {id}")),
            31 => words(&format!("XREADGROUP GROUP {group} {consumer} NOACK COUNT {count} STREAMS {stream} >")),
            32..35 => {
                let mut command = words(&format!("XACK {stream} {group} {id}"));
                for (id, _) in self.held(stream, group, consumer) {
                    command.push_word(id);
                }
                command
            }
            35..40 => self.claim(lane),
            40..42 => {
                let idle = self.dice.pick(&[0, 0, 3_600_000]);
                let start = self.bound("-");
                let just = self.dice.pick(&["", "JUSTID"]);
                words(&format!("XAUTOCLAIM {stream} {group} {consumer} {idle} {start} COUNT {} {just}", count))
            }
            42..44 => {
                let (idle, from, to) = (self.dice.pick(&["", "IDLE 3600000"]), self.bound("-"), self.bound("+"));
                words(&format!(
                    "XPENDING {stream} {group} {idle} {from} {to} {count} {}",
                    self.dice.pick(&["", consumer])
                ))
            }
            44..47 => words(&format!("XDEL {stream} {id} {}", self.some_id())),
            47 => words(&format!("XTRIM {stream} MAXLEN {}", self.dice.below(40))),
            48 => words(&format!("XTRIM {own} MAXLEN ~ {} LIMIT {}", self.dice.below(60), self.dice.below(150))),
            49 => words(&format!("XTRIM {own} MINID ~ {id}")),
            50 => words(&format!("XTRIM {stream} MINID {id}")),
            51..54 => {
                let (from, to) = (self.bound("-"), self.bound("+"));
                let count = self.dice.pick(&["", "COUNT 3", "COUNT 0", "COUNT -1"]);
                match self.dice.below(2) {
                    0 => words(&format!("XRANGE {stream} {from} {to} {count}")),
                    _ => words(&format!("XREVRANGE {stream} {to} {from} {count}")),
                }
            }
            54 => words(&format!("XREAD COUNT {count} STREAMS in1 in2 {id} {}", self.dice.pick(&["0", "$"]))),
            55..58 => {
                let at = self.dice.pick(&["$", "0", "0-0", id.as_str()]).to_owned();
                let more = self.dice.pick(&["", "MKSTREAM", "MKSTREAM", "MKSTREAM", "ENTRIESREAD 3", "NONSENSE"]);
                words(&format!("XGROUP CREATE {stream} {group} {at} {more}"))
            }
            58..60 => {
                let more = self.dice.pick(&["", "", "ENTRIESREAD 2"]);
                words(&format!("XGROUP SETID {stream} {group} {} {more}", self.dice.pick(&["$", "0", id.as_str()])))
            }
            60 if self.dice.one_in(2) => words(&format!("XGROUP DESTROY {stream} {group}")),
            60 => words(&format!("XGROUP CREATECONSUMER {stream} {group} {consumer}")),
            61 => words(&format!("XGROUP DELCONSUMER {stream} {group} {consumer}")),
            62 => words(&format!("DEL {}", self.dice.pick(&["in2", "ledger", "park", "out1", "nothing", "text"]))),
            63 => words(&format!("SET {} v", self.dice.pick(&["out2", "text", "park"]))),
            64 => words(&format!("SET text {count} NX PX 100000")),
            65 => words(&format!("HSET {} a 1 b {count} n 5", self.dice.pick(&["ledger", "park", "text", "in1"]))),
            66 => words(&format!("HINCRBY ledger {} {count}", self.dice.pick(&["n", "a", "floor"]))),
            67 => words(&format!("HMGET ledger a b floor {}", self.dice.pick(&["n", ""]))),
            68 => words(self.dice.pick(&[
                "HDEL ledger a b",
                "HLEN ledger",
                "HEXISTS ledger a",
                "HSETNX ledger a 7",
                "HGET ledger a",
            ])),
            69 => words(self.dice.pick(&[
                "PEXPIRE text 0",
                "EXPIRE text 1000",
                "PTTL nothing",
                "SETNX text 3",
                "GET text",
                "GET in1",
                "EXISTS in1 in2 in1",
                "TYPE in1",
                "TYPE nothing",
                "XLEN in1",
                "DBSIZE",
            ])),
            70 => words(self.dice.pick(&[
                "NONSENSE a b",
                "GET",
                "XGROUP NONSENSE",
                "XINFO",
                "XGROUP CREATE a",
                "XADD in1 *",
                "XADD in1 1-x a b",
                "XTRIM in1 MINID",
                "XINFO STREAM nothing",
                "XREADGROUP GROUP g1 c1 STREAMS in1 $",
                "XREAD STREAMS in1",
                "SCAN 0 MATCH in* COUNT 100",
                "SCAN 0 TYPE stream COUNT 100",
                "KEYS [io]*",
                "XACK in1 g1 bad",
                "XPENDING in1 g1 - +",
                "XREAD STREAMS in1 >",
                "XAUTOCLAIM in1 g1 c1 0 -",
                "XADD in1 MAXLEN -1 1-1 a b",
                "XTRIM in1 MAXLEN 3 MINID 3",
                "EVAL return -1",
                "XCLAIM in1 g1 c1 x 1-1",
                "XRANGE in1 (18446744073709551615-18446744073709551615 +",
                "SCRIPT NONSENSE",
                "HSET ledger a",
            ])),
            71..85 => self.settle(lane),
            85..91 => self.park(lane),
            91..99 => self.take(lane),
            99..102 => self.heartbeat(lane),
            102..106 => {
                let (keep, most) = (self.dice.below(120), self.dice.pick(&[10_000, 150]));
                let mut call = self.script("trim", &[own, "cofferdam:trimmed"]);
                call.push_word(keep).push_word(if self.dice.one_in(2) { "" } else { &id }).push_word(most);
                if self.dice.one_in(3) {
                    call.push_word("g2");
                }
                call
            }
            106..108 => self.redrive(),
            118..120 => self.discard(),
            120 => self.script("forget_trimmed", &[own, "cofferdam:trimmed"]),
            110..116 => self.own(lane),
            116..118 => {
                let mut call = self.script("create_group", &[stream]);
                call.push_word(group).push_word(id).push_word(self.dice.below(2));
                call
            }
            _ => {
                let mut call = self.script("drop_consumer", &[stream]);
                call.push_word(group).push_word(consumer);
                call
            }
        }]
    }
}
