//! A host in the simulation: the very lanes of production, over simulated connections, with handlers that do what each payload
//! says. It can be killed wherever it is, stopped and continued, and told to leave.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cofferdam_delivery::{
    Bells, Counters, DeliveryConfig, Gate, Job, Lane, LaneParts, Mode, PluginBreaker, Reader, Runner, Surroundings,
    Terms,
};
use cofferdam_model::{Backoff, Delivery, Event, Fault, Outcome, RetryPolicy};
use cofferdam_streams::{Evidence, LaneKeys, Retention, Start, Store, Subscription, VersionStamp, redrive_stream};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::check::Violation;
use crate::scenario::Scenario;
use crate::world::{INPUT, Network, OUTPUTS, WRONG, World};

/// How messages are moved in the simulation: as in production, only sooner.
pub const DELIVERY: DeliveryConfig = DeliveryConfig {
    lease: Duration::from_secs(2),
    grace: Duration::from_secs(1),
    in_flight_max: 64,
    in_flight_bytes_max: 4 << 10,
};
/// Deaths of a process before a message is given up.
pub const CRASHES: u32 = 2;
/// How often a host trims.
const TRIM_EVERY: Duration = Duration::from_millis(700);

/// The name of a plugin.
pub fn plugin_name(plugin: usize) -> String {
    format!("plugin-{plugin}")
}

/// The group of a plugin.
pub fn group_name(plugin: usize) -> String {
    format!("group:{}", plugin_name(plugin))
}

/// Whether what handlers need is down: until when.
#[derive(Debug, Default)]
pub struct Downstream {
    down_until: Mutex<Option<Instant>>,
}

impl Downstream {
    /// Goes down for a while.
    pub fn fail_for(&self, time: Duration) {
        *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
    }

    fn is_down(&self) -> bool {
        let until = *self.down_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}

/// One life of a host.
pub struct Host {
    life: Arc<Life>,
    modes: Vec<watch::Sender<Mode>>,
    /// What each of its lanes has counted.
    pub counters: Vec<Arc<Counters>>,
    lanes: Vec<tokio::task::JoinHandle<()>>,
}

/// What its tasks share.
struct Life {
    world: Arc<World>,
    consumer: Arc<str>,
    frozen: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
    tasks: Mutex<Vec<AbortHandle>>,
    dead: AtomicBool,
}

impl Life {
    /// Starts a task of this host, which ends with it and stands still with it.
    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
        let handle = tokio::spawn(Freezable { life: self.clone(), inner: Box::pin(task) });
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(handle.abort_handle());
        if self.dead.load(Ordering::Relaxed) {
            handle.abort();
        }
        handle
    }

    fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(|task| task.abort());
    }
}

/// A future that makes no step while its host is stopped.
struct Freezable {
    life: Arc<Life>,
    inner: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for Freezable {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.life.frozen.load(Ordering::Relaxed) {
            self.life.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(context.waker().clone());
            return Poll::Pending;
        }
        self.inner.as_mut().poll(context)
    }
}

impl Host {
    /// Starts a host. `number` says which, `life` how often it has been started.
    pub fn start(
        world: &Arc<World>,
        scenario: &Scenario,
        downstream: &Arc<Downstream>,
        number: usize,
        life_number: u32,
        killed: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        let life = Arc::new(Life {
            world: world.clone(),
            consumer: format!("host-{number}/{life_number}").into(),
            frozen: AtomicBool::new(false),
            wakers: Mutex::default(),
            tasks: Mutex::default(),
            dead: AtomicBool::new(false),
        });
        let own = Arc::downgrade(&life);
        let kill: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            if let Some(life) = own.upgrade().filter(|life| !life.dead.load(Ordering::Relaxed)) {
                life.kill();
                killed();
            }
        });
        let network = Network { world: world.clone(), host: number, kill: kill.clone() };
        let (bells, gate) = (Arc::new(Bells::default()), Arc::new(Gate::default()));
        let mut host = Host { life: life.clone(), modes: Vec::new(), counters: Vec::new(), lanes: Vec::new() };
        for plugin in 0..scenario.plugins {
            let terms = Arc::new(Terms {
                stamp: Arc::new(VersionStamp {
                    plugin: plugin_name(plugin),
                    digest: "d".repeat(64),
                    config: "c".repeat(64),
                }),
                retry: RetryPolicy {
                    retries: scenario.retries,
                    backoff: Backoff { base: Duration::from_millis(100), factor: 2, max: Duration::from_secs(1) },
                    crashes: CRASHES,
                },
                message_bytes_max: 1 << 20,
                forgiven: Vec::new(),
            });
            let runner = Arc::new(Scripted {
                life: life.clone(),
                kill: kill.clone(),
                downstream: downstream.clone(),
                terms,
                deaths_max: scenario.keeps_history().then(|| 1 + scenario.restarts()),
                threads: Arc::new(Semaphore::new(2)),
                apart: Arc::new(Semaphore::new(1)),
            });
            let breaker = Arc::new(PluginBreaker::new());
            for stream in [INPUT, &redrive_stream(&group_name(plugin))] {
                let counters = Arc::new(Counters::default());
                let (mode, modes) = watch::channel(Mode::Run);
                let keys = LaneKeys::new(stream, &group_name(plugin));
                let bell = bells.listen(&keys.stream);
                // What comes back from the dead letters is out of order anyway.
                let (ordered, mut subscription) = (scenario.ordered && !keys.is_redrive(), Subscription::plain(INPUT));
                subscription.key = ordered.then(|| "/key".into());
                let (network, runner, breaker, gate) = (network.clone(), runner.clone(), breaker.clone(), gate.clone());
                let (consumer, own_counters, life_here) = (life.consumer.clone(), counters.clone(), life.clone());
                host.lanes.push(life.spawn(async move {
                    let store = open(&network).await;
                    let parts = LaneParts {
                        store,
                        reader: Reader::new(&keys, std::iter::once(subscription)),
                        keys,
                        ordered,
                        plugin: plugin_name(plugin).into(),
                        consumer,
                        runner,
                        surroundings: Arc::new(Chance(life_here.world.clone())),
                        counters: own_counters,
                        breaker,
                        gate,
                        delivery: DELIVERY,
                        start: Start::Oldest,
                        bell,
                        mode: modes,
                    };
                    Lane::new(parts).run().await;
                }));
                host.modes.push(mode);
                host.counters.push(counters);
            }
        }
        let ringing = network.clone();
        life.spawn(async move { bells.run(open(&ringing).await).await });
        let (world, consumer, keep) = (world.clone(), life.consumer.clone(), scenario.keep);
        life.spawn(async move { trim(&world, &open(&network).await, &consumer, keep).await });
        host
    }

    /// Kills it, wherever it is.
    pub fn kill(&self) {
        self.life.kill();
    }

    /// Its consumer name.
    pub fn consumer(&self) -> Arc<str> {
        self.life.consumer.clone()
    }

    /// Whether it has been killed.
    pub fn is_dead(&self) -> bool {
        self.life.dead.load(Ordering::Relaxed)
    }

    /// Stops it as a signal does, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        self.life.frozen.store(frozen, Ordering::Relaxed);
        if !frozen {
            self.life.wakers.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(Waker::wake);
        }
    }

    /// Tells it to leave, and waits until it has. Says whether nothing killed it meanwhile.
    pub async fn stop(mut self) -> bool {
        for mode in &self.modes {
            // A lane that has ended hears nothing, and need not.
            let _ = mode.send(Mode::Stop);
        }
        for lane in std::mem::take(&mut self.lanes) {
            let _ = lane.await;
        }
        let left = !self.is_dead();
        self.kill();
        left
    }
}

async fn open(network: &Network) -> Store {
    Store::open(Arc::new(network.clone())).await.expect("a simulated connection is always there")
}

async fn trim(world: &World, store: &Store, consumer: &str, keep: u64) {
    let retention = Retention { entries: keep, age: None, ignored_groups: Vec::new() };
    loop {
        sleep(TRIM_EVERY).await;
        if matches!(store.may_trim(consumer, TRIM_EVERY * 2).await, Ok(true)) {
            // A trim that fails is tried again.
            let _ = store.trim(INPUT, &retention, world.now_ms()).await;
        }
    }
}

struct Chance(Arc<World>);

impl Surroundings for Chance {
    fn now_ms(&self) -> u64 {
        self.0.now_ms()
    }

    fn random(&self) -> f64 {
        self.0.chance()
    }
}

/// Handlers that do what a payload says.
struct Scripted {
    life: Arc<Life>,
    kill: Arc<dyn Fn() + Send + Sync>,
    downstream: Arc<Downstream>,
    terms: Arc<Terms>,
    /// Hosts that may die of a message: one, and one for each that left in time to give it back uncharged and died of it all the
    /// same. `None` when a history is taken back, and what a message has done before with it.
    deaths_max: Option<u32>,
    threads: Arc<Semaphore>,
    apart: Arc<Semaphore>,
}

impl Runner for Scripted {
    fn terms(&self) -> Option<Arc<Terms>> {
        Some(self.terms.clone())
    }

    fn threads(&self) -> usize {
        2
    }

    fn submit(&self, job: Job) -> Result<(), Job> {
        let (downstream, terms, threads, kill) =
            (self.downstream.clone(), self.terms.clone(), self.threads.clone(), self.kill.clone());
        let (world, deaths_max) = (self.life.world.clone(), self.deaths_max);
        self.life.spawn(async move {
            let _thread = threads.acquire().await;
            run(job, &downstream, &terms, |delivery| {
                let died = world.dies_of(&terms.stamp.plugin, delivery.message.id);
                if deaths_max.is_some_and(|most| died > most) {
                    let text = format!("{died} hosts died of {}", delivery.message.id);
                    world.saw(Violation::new("what killed a host runs apart", text));
                }
                kill();
                None
            })
            .await;
        });
        Ok(())
    }

    fn submit_apart(&self, job: Job) -> Result<(), Job> {
        let (downstream, terms, apart) = (self.downstream.clone(), self.terms.clone(), self.apart.clone());
        self.life.spawn(async move {
            let _process = apart.acquire().await;
            run(job, &downstream, &terms, |_| Some(Fault::ProcessDied { text: "signal: 6".into() })).await;
        });
        Ok(())
    }
}

/// Runs a job. `dies` says what becomes of a message that kills its process: a fault, or the end of the host.
async fn run(mut job: Job, downstream: &Downstream, terms: &Arc<Terms>, dies: impl Fn(&Delivery) -> Option<Fault>) {
    while let Some(delivery) = job.current() {
        if job.is_stopping() {
            return;
        }
        let order: serde_json::Value = serde_json::from_str(&delivery.message.payload).unwrap_or_default();
        let number = |name: &str| order.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let took = Duration::from_millis(number("busy").max(1));
        sleep(took).await;
        let result = match order.get("do").and_then(serde_json::Value::as_str).unwrap_or_default() {
            _ if downstream.is_down() => Ok(Outcome::Retry { reason: "downstream is down".into(), after: None }),
            "emit" => Ok(Outcome::Events((0..number("n")).map(|index| event(delivery, index)).collect())),
            "fail" if u64::from(delivery.attempt(&terms.forgiven)) < number("n") => {
                Err(Fault::Trap { text: "as told".into(), backtrace: String::new() })
            }
            "fail" => Ok(Outcome::Events(vec![event(delivery, 0)])),
            "reject" => Ok(Outcome::Reject { reason: "as told".into() }),
            "wrong" => {
                let mut wrong = event(delivery, 1);
                WRONG.clone_into(&mut wrong.stream);
                Ok(Outcome::Events(vec![event(delivery, 0), wrong]))
            }
            "kill" => match dies(delivery) {
                Some(fault) => Err(fault),
                None => return std::future::pending().await,
            },
            other => Ok(Outcome::Reject { reason: format!("no such act: {other:?}") }),
        };
        job.finish(result, Some(terms.clone()), Evidence { took, ..Evidence::default() });
        job.hand_back();
    }
}

fn event(delivery: &Delivery, index: u64) -> Event {
    let [even, odd] = OUTPUTS;
    let stream = if index.is_multiple_of(2) { even } else { odd }.to_owned();
    let payload = format!("{{\"of\":\"{}\",\"index\":{index}}}", delivery.message.id);
    Event { stream, payload, priority: None, key: None, attributes: Vec::new() }
}
