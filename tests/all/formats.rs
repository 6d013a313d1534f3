//! Two versions of a host at one Redis: an upgrade and a downgrade of a fleet, one host at a time, under load. The older program is
//! this one, told to be of format 1.0, where records of attempts do not say when each began.

use std::time::Duration;

use cofferdam_tests::checker::{Left, check, ledger, ledger_of, payload, unsettled};
use cofferdam_tests::{Host, PATIENCE, Place, Redis, comes_true, errors, program_with_mutants, publish, wait_until};
use serde_json::Value;

const OLDER: (&str, &str) = ("COFFERDAM_FORMAT", "1.0");

/// A fleet of two hosts, and a load that never ends.
struct Fleet {
    redis: Redis,
    place: Place,
    hosts: Vec<Host>,
    started: usize,
    published: u64,
}

impl Fleet {
    fn new(environment: [&[(&str, &str)]; 2]) -> Self {
        let (redis, place) = (Redis::start(), Place::new());
        place.put_actor("retries = 2\n[backoff]\nbase = \"100ms\"\n");
        let mut fleet = Fleet { redis, place, hosts: Vec::new(), started: 0, published: 0 };
        for of_one in environment {
            let host = fleet.start(of_one);
            fleet.hosts.push(host);
        }
        fleet
    }

    fn start(&mut self, environment: &[(&str, &str)]) -> Host {
        let data = self.place.directory.path().join(format!("data{}", self.started));
        self.started += 1;
        Host::start(&program_with_mutants(), &self.redis.url(), &data, &self.place.plugins(), environment)
    }

    /// The next host comes before the one in its place goes, and messages are on their way all the time.
    fn replace(&mut self, place: usize, environment: &[(&str, &str)]) {
        self.load();
        let next = self.start(environment);
        self.load();
        std::mem::replace(&mut self.hosts[place], next).stop();
        self.load();
    }

    fn load(&mut self) {
        for _ in 0..5 {
            publish(&self.redis, "stream:in", (self.published..self.published + 100).map(payload));
            self.published += 100;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn settle(&self) {
        wait_until("all is settled", || unsettled(&self.redis) == 0);
    }

    fn format(&self) -> String {
        self.redis.cli(&["GET", "cofferdam:format"])
    }

    /// The attempts in dead letters after the first `skipped` of them: how many there are, and how many say when they began.
    fn attempts(&self, skipped: usize) -> (usize, usize) {
        let entries = self.redis.cli(&["--json", "XRANGE", "stream:dead_letter", "-", "+"]);
        let entries: Vec<(String, Vec<String>)> = serde_json::from_str(&entries).unwrap_or_default();
        let (mut all, mut timed) = (0, 0);
        for (_, fields) in entries.iter().skip(skipped) {
            let at = fields.iter().position(|field| field == "attempts").expect("a dead letter tells its attempts") + 1;
            let attempts: Vec<Value> = serde_json::from_str(&fields[at]).expect("they are a list");
            all += attempts.len();
            timed += attempts.iter().filter(|attempt| attempt["started_ms"].as_u64().is_some()).count();
        }
        (all, timed)
    }

    fn dead(&self) -> usize {
        self.redis.number(&["XLEN", "stream:dead_letter"]) as usize
    }
}

#[test]
fn a_fleet_is_upgraded_and_downgraded_under_load_and_each_host_understands_what_the_others_write() {
    let mut fleet = Fleet::new([&[OLDER], &[OLDER]]);
    fleet.load();
    fleet.replace(0, &[]);
    fleet.settle();
    assert_eq!(fleet.format(), "1.0", "an older host lives");
    let (all, timed) = fleet.attempts(0);
    assert!(all > 3 && timed == 0, "{timed} of {all} attempts were written as the older host does not know them");

    // The last older host leaves: its report goes with it, and what the fleet writes is the newer format.
    fleet.replace(1, &[]);
    wait_until("the newer format is agreed on", || fleet.format() == "1.1");
    fleet.settle();
    let before = fleet.dead();
    // One report's time, until each host has looked.
    wait_until("attempts say when they began", || {
        fleet.load();
        fleet.attempts(before).1 > 0
    });

    fleet.replace(0, &[OLDER]);
    assert_eq!(fleet.format(), "1.0", "an older host has come back");
    let older_again = comes_true(PATIENCE, || {
        fleet.settle();
        let before = fleet.dead();
        fleet.load();
        fleet.settle();
        let (all, timed) = fleet.attempts(before);
        all > 0 && timed == 0
    });
    assert!(older_again, "the newer host does not write what the older one knows");
    assert_eq!(check(&fleet.redis, fleet.published), Left::default());
    assert_eq!(ledger(&fleet.redis), ledger_of(fleet.published), "a change of versions was charged to a message");
}

#[test]
fn a_host_that_ignored_the_older_format_is_noticed() {
    let mut fleet = Fleet::new([&[OLDER], &[("COFFERDAM_FORMAT_IGNORED", "1")]]);
    let noticed = comes_true(PATIENCE, || {
        fleet.load();
        fleet.settle();
        fleet.attempts(0).1 > 0
    });
    assert!(noticed, "the test above could not fail");
}

#[test]
fn a_format_that_this_program_cannot_work_with_is_refused_with_the_way_out() {
    let (redis, place) = (Redis::start(), Place::new());
    for (found, mend) in [
        ("2.0", "use the Cofferdam version that wrote them"),
        ("1.3", "that wrote them"),
        ("soup", "redis-cli SET cofferdam:format"),
    ] {
        redis.cli(&["SET", "cofferdam:format", found]);
        let data = place.directory.path().join("data");
        let output =
            cofferdam_tests::cofferdam(&["run", "--redis", &redis.url(), "--data", &data.display().to_string()]);
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.contains(found) && text.contains(mend), "{text}");
        assert_eq!(redis.cli(&["GET", "cofferdam:format"]), found, "what was found is left as it is");
    }
}
