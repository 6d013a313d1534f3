//! One seed: the world is set up, faults strike at their times while messages are published, and then, with everything whole
//! again, all must come to rest in time and every promise must have been kept.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::check::{self, Violation};
use crate::host::{Downstream, Host, group_name};
use crate::scenario::{Fault, Scenario};
use crate::world::{Trouble, World};

/// After the last fault, everything that dead hosts held is taken over within two leases; what is left then is retries, which
/// take their time, and the runs themselves.
const REST: Duration = Duration::from_secs(240);

/// How long the last verdicts may take to be settled or refused.
const COUNTED: Duration = Duration::from_secs(30);

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Everything that was broken; empty when all promises were kept.
    pub violations: Vec<Violation>,
    /// Commands that the server carried out.
    pub commands: u64,
    /// A digest of all commands and replies: the same for every run of a seed.
    pub trace: u64,
    /// Simulated time.
    pub took: Duration,
}

/// Runs a seed.
///
/// # Panics
/// When no runtime can be made, which needs nothing but memory; and on whatever the code under test panics.
pub fn run(scenario: &Scenario) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers needs nothing but memory");
    let report = runtime.block_on(simulate(scenario));
    runtime.shutdown_background();
    report
}

struct Fleet {
    world: Arc<World>,
    scenario: Scenario,
    downstream: Arc<Downstream>,
    hosts: Mutex<Vec<Place>>,
}

/// Where a host lives: it comes and goes, the place stays.
#[derive(Default)]
struct Place {
    host: Option<Host>,
    lives: u32,
    /// How long it stays down after its next death.
    down_ms: u64,
}

impl Fleet {
    fn start(self: &Arc<Self>, number: usize) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = hosts.get_mut(number) else { return };
        if place.host.as_ref().is_some_and(|host| !host.is_dead()) {
            return;
        }
        place.lives += 1;
        let fleet = Arc::downgrade(self);
        // Whatever kills a host, it is started again a while later, as a service manager does.
        let killed = Arc::new(move || {
            if let Some(fleet) = fleet.upgrade() {
                fleet.restart_later(number);
            }
        });
        place.host = Some(Host::start(&self.world, &self.scenario, &self.downstream, number, place.lives, killed));
    }

    fn restart_later(self: &Arc<Self>, number: usize) {
        let fleet = self.clone();
        tokio::spawn(async move {
            let down_ms = fleet.with(number, |place| std::mem::take(&mut place.down_ms)).unwrap_or(0);
            sleep(Duration::from_millis(down_ms.max(50))).await;
            fleet.start(number);
        });
    }

    fn with<T>(&self, number: usize, look: impl FnOnce(&mut Place) -> T) -> Option<T> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).get_mut(number).map(look)
    }

    fn kill(self: &Arc<Self>, number: usize, down_ms: u64) {
        let died = self.with(number, |place| {
            place.down_ms = down_ms;
            place.host.as_ref().filter(|host| !host.is_dead()).map(Host::kill).is_some()
        });
        if died == Some(true) {
            self.restart_later(number);
        }
    }

    /// Asks every living host.
    fn living<T>(&self, ask: impl Fn(&Host) -> Vec<T>) -> Vec<T> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.iter().filter_map(|place| place.host.as_ref()).filter(|host| !host.is_dead()).flat_map(ask).collect()
    }

    fn freeze(&self, number: usize, frozen: bool) {
        self.with(number, |place| place.host.as_ref().map(|host| host.freeze(frozen)));
    }
}

async fn simulate(scenario: &Scenario) -> Report {
    let world = World::new(scenario.seed, scenario.hosts);
    let fleet = Arc::new(Fleet {
        world: world.clone(),
        scenario: scenario.clone(),
        downstream: Arc::default(),
        hosts: Mutex::new((0..scenario.hosts).map(|_| Place::default()).collect()),
    });
    let began = Instant::now();
    let at = |ms: u64| began + Duration::from_millis(ms);
    (0..scenario.hosts).for_each(|number| fleet.start(number));
    let producer = tokio::spawn({
        let (world, messages) = (world.clone(), scenario.messages.clone());
        async move {
            for message in messages {
                sleep_until(began + Duration::from_millis(message.at_ms)).await;
                while world.publish(&message).is_none() {
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    });
    let mut strikes = Vec::new();
    for (when, fault) in scenario.faults.clone() {
        sleep_until(at(when)).await;
        strikes.push(tokio::spawn(strike(fleet.clone(), fault)));
    }
    sleep_until(at(scenario.ends_ms)).await;
    for strike in strikes {
        let _ = strike.await;
    }
    let _ = producer.await;
    // Everything is whole again: from here on it is about coming to rest.
    (0..scenario.hosts).for_each(|number| {
        world.trouble(number, Trouble::default());
        fleet.freeze(number, false);
        fleet.start(number);
    });
    world.refuse(None);
    world.out_of_memory(false);
    let mut violations = Vec::new();
    let whole = Instant::now();
    let mut rested = false;
    while !rested && whole.elapsed() < REST {
        sleep(Duration::from_millis(500)).await;
        rested = (0..scenario.plugins).all(|plugin| check::rests(&world, plugin));
    }
    if !rested {
        violations.extend((0..scenario.plugins).filter(|plugin| !check::rests(&world, *plugin)).map(|plugin| {
            Violation::new(
                "liveness",
                format!("{} has not come to rest: {}", group_name(plugin), check::unrest(&world, plugin)),
            )
        }));
    }
    // A settle that was refused is repeated after a pause, though another host may have done the work meanwhile.
    let counted = Instant::now();
    while rested && counted.elapsed() < COUNTED && !fleet.living(|host| check::counts(&host.counters)).is_empty() {
        sleep(Duration::from_millis(500)).await;
    }
    violations.extend(world.seen());
    violations.extend(check::promises(&world, scenario));
    if rested {
        violations.extend(fleet.living(|host| check::counts(&host.counters)));
    }
    let (commands, trace) = world.trace();
    Report { violations, commands, trace, took: world.elapsed() }
}

async fn strike(fleet: Arc<Fleet>, fault: Fault) {
    let world = fleet.world.clone();
    let pause = |ms: u64| sleep(Duration::from_millis(ms));
    match fault {
        Fault::Kill { host, down_ms } => fleet.kill(host, down_ms),
        Fault::KillAtCommand { host, commands, before, down_ms } => {
            fleet.with(host, |place| place.down_ms = down_ms);
            world.doom(host, commands, before);
        }
        Fault::Freeze { host, for_ms } => {
            fleet.freeze(host, true);
            pause(for_ms).await;
            fleet.freeze(host, false);
        }
        Fault::Restart { host } => {
            let leaving = fleet.with(host, |place| place.host.take()).flatten();
            if let Some(leaving) = leaving {
                leaving.freeze(false);
                let (consumer, full) = (leaving.consumer(), world.is_full());
                let left = leaving.stop().await;
                if left && full && world.is_full() && fleet.scenario.keeps_replies() && fleet.scenario.keeps_history() {
                    (0..fleet.scenario.plugins).for_each(|plugin| check::lets_go(&world, plugin, &consumer));
                }
                fleet.start(host);
            }
        }
        Fault::Network { host, for_ms, requests, replies, delay_ms } => {
            world.trouble(host, Trouble { lose_requests: requests, lose_replies: replies, delay_ms, cut: false });
            pause(for_ms).await;
            world.trouble(host, Trouble::default());
        }
        Fault::Cut { host, for_ms } => {
            world.trouble(host, Trouble { cut: true, ..Trouble::default() });
            pause(for_ms).await;
            world.trouble(host, Trouble::default());
        }
        Fault::CutAll { for_ms } => {
            let all = 0..fleet.scenario.hosts;
            all.clone().for_each(|host| world.trouble(host, Trouble { cut: true, ..Trouble::default() }));
            pause(for_ms).await;
            all.for_each(|host| world.trouble(host, Trouble::default()));
        }
        Fault::Step { by_ms } => world.step_clock(by_ms),
        Fault::FailOver { lag_ms } => {
            world.replicate();
            pause(lag_ms).await;
            world.fail_over();
        }
        Fault::OutOfMemory { for_ms } => {
            world.out_of_memory(true);
            pause(for_ms).await;
            world.out_of_memory(false);
        }
        Fault::Refuse { for_ms, error } => {
            world.refuse(Some(error));
            pause(for_ms).await;
            world.refuse(None);
        }
        Fault::ForgetScripts => world.forget_scripts(),
        Fault::Outage { for_ms } => {
            fleet.downstream.fail_for(Duration::from_millis(for_ms));
            pause(for_ms).await;
        }
        Fault::Trim { keep } => check::foreign_trim(&world, fleet.scenario.plugins, keep),
        Fault::Delete { which } => check::foreign_delete(&world, fleet.scenario.plugins, which),
        Fault::DeleteConsumer { which } => check::delete_consumer(&world, fleet.scenario.plugins, which),
        Fault::DestroyGroup { plugin } => check::destroy_group(&world, plugin),
        Fault::Flush => world.flush(),
        Fault::Redrive => check::redrive(&world, fleet.scenario.plugins).await,
    }
}
