//! Which plugins this host runs: their lanes, their state, and what it tells others of them.
//!
//! A version that reads the same streams with the same group takes its seat between two messages; one that reads others gets
//! new lanes, after the old ones have finished. Removal pauses, never drops.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cofferdam_delivery::{
    Bells, Counters, Counts, DeliveryConfig, Doing, Gate, Lane, LaneParts, Mode, PluginBreaker, Reader,
};
use cofferdam_model::route::Route;
use cofferdam_streams::{LaneKeys, Store, StreamError, redrive_stream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::approval::{Asks, cycles};
use crate::clock;
use crate::commands::reports;
use crate::manifest::{Manifest, StartRule, Subscribed};
use crate::runner::{PluginRunner, System};
use crate::steps::StepReport;
use crate::version::{Seat, Version};

/// What a plugin is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Reading and handling.
    Running,
    /// Its file is gone, or it has reached a limit: it finishes what is under way and reads nothing new.
    Paused,
    /// Found, and not run: its detail says what it waits for.
    Waiting,
    /// Refused, and no earlier version is there to go on with.
    Refused,
}

/// What a host says of one plugin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PluginReport {
    pub(crate) name: String,
    pub(crate) state: State,
    /// The live version; empty when none is.
    pub(crate) digest: String,
    pub(crate) group: String,
    pub(crate) subscribe: Vec<String>,
    pub(crate) emit: Vec<String>,
    /// Whether it keeps the order of each key; hosts of earlier versions did not say.
    #[serde(default)]
    pub(crate) ordered: Option<bool>,
    /// Since when this version is live, in milliseconds since 1970.
    pub(crate) since_ms: u64,
    /// Why it waits or was refused, or why a newer version was.
    pub(crate) detail: String,
    /// The digest of the candidate that `detail` is about.
    pub(crate) candidate: String,
    /// Whether the candidate runs as soon as somebody approves it.
    #[serde(default)]
    pub(crate) awaits_approval: bool,
    /// Whether the candidate is not run because the plugin is held to another version.
    #[serde(default)]
    pub(crate) pinned: bool,
    /// What each step of admission said of the candidate, or of the live version when there is no other.
    #[serde(default)]
    pub(crate) steps: Vec<StepReport>,
    pub(crate) counts: Counts,
}

struct RunningLane {
    mode: watch::Sender<Mode>,
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

impl RunningLane {
    fn tell(&self, mode: Mode) {
        // A lane that has ended hears nothing, and need not.
        let _ = self.mode.send(mode);
    }
}

struct RunningPlugin {
    seat: Arc<Seat>,
    version: Arc<Version>,
    lanes: BTreeMap<String, RunningLane>,
    paused: bool,
    /// Why the guard holds it; empty when it does not.
    held: String,
    since_ms: u64,
    /// Counts of lanes that have ended.
    past: Counts,
}

impl RunningPlugin {
    fn tell_mode(&self) {
        let mode = if self.paused || !self.held.is_empty() { Mode::Pause } else { Mode::Run };
        self.lanes.values().for_each(|lane| lane.tell(mode));
    }
}

/// What is known of a candidate that is not run. A live version goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Note {
    /// Whether it needs something of a person, and is not refused.
    pub(crate) waiting: bool,
    /// Why it is not run, and what to do.
    pub(crate) detail: String,
    /// Its digest, when it has one.
    pub(crate) candidate: String,
    /// Whether it runs as soon as somebody approves it.
    pub(crate) awaits_approval: bool,
    /// Whether it is not run because the plugin is held to another version.
    pub(crate) pinned: bool,
    /// What each step of admission said of it.
    pub(crate) steps: Vec<StepReport>,
}

impl Note {
    /// Of a candidate only that.
    pub(crate) fn about(candidate: String, detail: String) -> Note {
        Note { candidate, detail, ..Note::default() }
    }
}

/// Runs the plugins of this host.
pub(crate) struct Supervisor {
    store: Store,
    consumer: Arc<str>,
    delivery: DeliveryConfig,
    private_redis: bool,
    bells: Arc<Bells>,
    /// Closed while Redis refuses writes.
    gate: Arc<Gate>,
    inner: Mutex<Inner>,
    /// Rises with every change that others should hear of soon.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    running: BTreeMap<String, RunningPlugin>,
    notes: BTreeMap<String, Note>,
    /// What the guard has to say of each plugin.
    alarms: BTreeMap<String, Vec<String>>,
    stopped: bool,
}

impl Supervisor {
    pub(crate) fn new(
        store: Store,
        consumer: Arc<str>,
        delivery: DeliveryConfig,
        private_redis: bool,
        bells: Arc<Bells>,
    ) -> Self {
        let inner = Mutex::new(Inner::default());
        Supervisor {
            store,
            consumer,
            delivery,
            private_redis,
            bells,
            gate: Arc::default(),
            inner,
            changes: watch::channel(0).0,
        }
    }

    /// Hears of changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a version live. What had its group before, paused or under the name that its file gave then, ends first.
    pub(crate) async fn install(&self, version: Version) {
        let version = Arc::new(version);
        let name = version.manifest.name.clone();
        for former in self.take_others(&name, &version.manifest.group) {
            stop(former).await;
        }
        let ended = {
            let mut inner = self.locked();
            inner.notes.remove(&name);
            match inner.running.get_mut(&name) {
                // One that was taken away and comes back begins with new lanes: its groups may have been removed with it, and a lane
                // that has read once takes a missing group for a loss.
                Some(running) if !running.paused && same_lanes(&running.version, &version) => {
                    running.seat.swap(version.clone());
                    running.version = version.clone();
                    running.since_ms = clock::now_ms();
                    None
                }
                Some(_) => inner.running.remove(&name),
                None => None,
            }
        };
        let mut past = Counts::default();
        if let Some(running) = ended {
            past = stop(running).await;
        }
        let mut inner = self.locked();
        // A host that is leaving starts nothing that nobody would stop.
        if !inner.stopped {
            inner.running.entry(name).or_insert_with(|| self.start(version, past));
        }
        drop(inner);
        self.changed();
    }

    /// Takes out the plugins of this group but the one of this name: a group is one plugin's.
    fn take_others(&self, name: &str, group: &str) -> Vec<RunningPlugin> {
        let mut inner = self.locked();
        let of_group =
            |other: &String, running: &mut RunningPlugin| other != name && running.version.manifest.group == group;
        inner.running.extract_if(.., of_group).map(|(_, running)| running).collect()
    }

    fn start(&self, version: Arc<Version>, past: Counts) -> RunningPlugin {
        let manifest = &version.manifest;
        let seat = Arc::new(Seat::default());
        seat.swap(version.clone());
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let threads = manifest.concurrency.unwrap_or(cores).min(version.threads_max);
        let runner = Arc::new(PluginRunner::new(&manifest.name, threads, seat.clone()));
        let breaker = Arc::new(PluginBreaker::new());
        let redrive = Subscribed {
            subscription: cofferdam_streams::Subscription::plain(&redrive_stream(&manifest.group)),
            start: StartRule::Oldest,
        };
        let mut lanes = BTreeMap::new();
        for subscribed in manifest.subscribed.iter().chain([&redrive]) {
            let stream = subscribed.subscription.stream.clone();
            let counters = Arc::new(Counters::default());
            let keys = LaneKeys::new(&stream, &manifest.group);
            let subscriptions = || manifest.subscribed.iter().map(|sub| sub.subscription.clone());
            let (mode, modes) = watch::channel(Mode::Run);
            let parts = LaneParts {
                store: self.store.clone(),
                reader: Reader::new(&keys, subscriptions()),
                ordered: manifest.ordered && !keys.is_redrive(),
                keys,
                plugin: manifest.name.as_str().into(),
                consumer: self.consumer.clone(),
                runner: runner.clone(),
                surroundings: Arc::new(System),
                counters: counters.clone(),
                breaker: breaker.clone(),
                gate: self.gate.clone(),
                delivery: self.delivery,
                start: subscribed.start.resolve(clock::now_ms(), self.private_redis),
                bell: self.bells.listen(&stream),
                mode: modes,
            };
            let task = tokio::spawn(Lane::new(parts).run());
            lanes.insert(stream.to_string(), RunningLane { mode, counters, task });
        }
        RunningPlugin { seat, lanes, paused: false, held: String::new(), since_ms: clock::now_ms(), past, version }
    }

    /// A candidate was found and is not run. A live version goes on.
    pub(crate) fn note(&self, name: &str, note: Note) {
        // The same look at the same file says the same again; that is no news.
        if self.locked().notes.insert(name.to_owned(), note.clone()).as_ref() != Some(&note) {
            self.changed();
        }
    }

    /// The files of a plugin are gone: nothing new is read, nothing is dropped.
    pub(crate) fn pause(&self, name: &str) {
        let mut inner = self.locked();
        let Inner { running, notes, .. } = &mut *inner;
        match running.get_mut(name) {
            Some(running) => {
                running.paused = true;
                running.tell_mode();
            }
            None => drop(notes.remove(name)),
        }
        drop(inner);
        self.changed();
    }

    /// A file that never was a plugin is gone: nothing is said of it any more.
    pub(crate) fn forget(&self, name: &str) {
        if self.locked().notes.remove(name).is_some() {
            self.changed();
        }
    }

    /// Why this plugin cannot run beside those that do: another one has its group. Even where they read other streams, each would take
    /// what is sent back to the group, and what the other has left behind. A paused one gives way, and so does `former`, the plugin that
    /// the same file has run so far.
    pub(crate) fn conflict(&self, manifest: &Manifest, former: Option<&str>) -> Option<String> {
        let inner = self.locked();
        let others = inner.running.values().filter(|running| !running.paused).map(|running| &running.version.manifest);
        let mut others = others.filter(|other| other.name != manifest.name && former != Some(other.name.as_str()));
        let other = others.find(|other| other.group == manifest.group)?;
        Some(format!(
            "{} has the group {:?}: each would take the other's messages; give this one a group of its own",
            other.name, other.group
        ))
    }

    /// The circles that a plugin closes with those that run, here or on another living host: it emits what another one reads, and so
    /// on, back to what it reads. Of a plugin that reads and emits different streams on different hosts all of them count.
    ///
    /// # Errors
    /// Whatever Redis answers to the question what the others run.
    pub(crate) async fn cycles(&self, manifest: &Manifest) -> Result<Vec<String>, StreamError> {
        let elsewhere: Vec<(String, Route)> = reports(&self.store)
            .await?
            .into_iter()
            .filter(|(host, _)| *host.consumer != *self.consumer)
            .flat_map(|(_, plugins)| plugins)
            // One that does not run has no streams, and no route.
            .filter_map(|plugin| Some((plugin.name, Route::new(plugin.subscribe, plugin.emit).ok()?)))
            .collect();
        let inner = self.locked();
        let here = inner.running.iter().map(|(name, running)| (name.as_str(), &running.version.manifest.route));
        let all = elsewhere.iter().map(|(name, route)| (name.as_str(), route)).chain(here);
        let others = all.filter(|(name, _)| *name != manifest.name);
        let routes: Vec<(&str, &Route)> = others.chain([(manifest.name.as_str(), &manifest.route)]).collect();
        Ok(cycles(&manifest.name, &routes))
    }

    /// What the version of a plugin that is here asks for, the circles that it closes included; `None` when there is none.
    ///
    /// # Errors
    /// Whatever Redis answers to the question what the others run.
    pub(crate) async fn runs_as(&self, name: &str) -> Result<Option<Asks>, StreamError> {
        let running = self.locked().running.get(name).map(|running| running.version.clone());
        let Some(version) = running else { return Ok(None) };
        Ok(Some(Asks::of(&version.manifest, self.cycles(&version.manifest).await?)))
    }

    /// The digest of a plugin's live version.
    pub(crate) fn live_digest(&self, name: &str) -> Option<String> {
        let inner = self.locked();
        inner
            .running
            .get(name)
            .filter(|running| !running.paused)
            .map(|running| running.version.terms.stamp.digest.clone())
    }

    /// The streams that are read and written here: those to be trimmed.
    pub(crate) fn streams(&self) -> Vec<String> {
        let inner = self.locked();
        let routes = inner.running.values().map(|running| &running.version.manifest);
        let mut streams: Vec<String> = routes
            .flat_map(|manifest| {
                let route = &manifest.route;
                route.subscribe().iter().chain(route.emit()).cloned().chain([redrive_stream(&manifest.group)])
            })
            .collect();
        streams.sort();
        streams.dedup();
        streams
    }

    /// The lanes that run here, each with its plugin.
    pub(crate) fn lanes(&self) -> Vec<(String, LaneKeys)> {
        let inner = self.locked();
        let lanes = |(name, running): (&String, &RunningPlugin)| {
            let (name, group) = (name.clone(), running.version.manifest.group.clone());
            let keys: Vec<_> =
                running.lanes.keys().map(|stream| (name.clone(), LaneKeys::new(stream, &group))).collect();
            keys
        };
        inner.running.iter().flat_map(lanes).collect()
    }

    /// What each plugin writes to.
    pub(crate) fn emits(&self) -> Vec<(String, Vec<String>)> {
        let inner = self.locked();
        inner
            .running
            .iter()
            .map(|(name, running)| (name.clone(), running.version.manifest.route.emit().to_vec()))
            .collect()
    }

    /// Holds a plugin back, or lets it go on when there is no reason any more. Whether that is a change.
    pub(crate) fn hold(&self, name: &str, why: &str) -> bool {
        let mut inner = self.locked();
        let Some(running) = inner.running.get_mut(name) else { return false };
        let change = running.held.is_empty() != why.is_empty();
        if running.held != why {
            why.clone_into(&mut running.held);
            running.tell_mode();
        }
        drop(inner);
        if change {
            self.changed();
        }
        change
    }

    /// What stands as an alarm, by plugin.
    pub(crate) fn set_alarms(&self, alarms: BTreeMap<String, Vec<String>>) {
        self.locked().alarms = alarms;
    }

    /// What this host says of its plugins.
    pub(crate) fn report(&self) -> Vec<PluginReport> {
        let inner = self.locked();
        let mut reports = Vec::new();
        for (name, running) in &inner.running {
            let note = inner.notes.get(name).cloned().unwrap_or_default();
            let mut counts = running.past.clone();
            running.lanes.values().for_each(|lane| counts.add(&lane.counters.counts()));
            let manifest = &running.version.manifest;
            let detail = match running.paused {
                true if note.detail.is_empty() => String::from("its file is gone; put it back to go on"),
                true => note.detail,
                false => {
                    let held_back = running.lanes.values().map(|lane| lane.counters.held_back());
                    let troubles = running.lanes.iter().flat_map(|(stream, lane)| {
                        let of = lane.counters.troubles().into_iter();
                        of.map(move |(doing, why)| match doing {
                            Doing::Reading => format!("cannot read {stream}; tried again and again: {why}"),
                            Doing::Settling => {
                                format!("cannot settle what it read of {stream}; tried again and again: {why}")
                            }
                            Doing::Owning => format!("cannot ask who keeps the order of the keys of {stream}: {why}"),
                            Doing::Renewing => format!("cannot renew the leases of what it holds of {stream}: {why}"),
                        })
                    });
                    let alarms = inner.alarms.get(name).into_iter().flatten().cloned();
                    held_back
                        .chain(troubles)
                        .chain([running.held.clone(), note.detail])
                        .chain(alarms)
                        .filter(|text| !text.is_empty())
                        .collect::<Vec<_>>()
                        .join("; ")
                }
            };
            reports.push(PluginReport {
                name: name.clone(),
                state: if running.paused || !running.held.is_empty() { State::Paused } else { State::Running },
                digest: running.version.terms.stamp.digest.clone(),
                group: manifest.group.clone(),
                subscribe: manifest.route.subscribe().to_vec(),
                emit: manifest.route.emit().to_vec(),
                ordered: Some(manifest.ordered),
                since_ms: running.since_ms,
                detail,
                candidate: note.candidate,
                awaits_approval: note.awaits_approval,
                pinned: note.pinned,
                steps: if note.steps.is_empty() { running.version.steps.clone() } else { note.steps },
                counts,
            });
        }
        for (name, note) in inner.notes.iter().filter(|(name, _)| !inner.running.contains_key(*name)) {
            reports.push(PluginReport {
                name: name.clone(),
                state: if note.waiting { State::Waiting } else { State::Refused },
                digest: String::new(),
                group: String::new(),
                subscribe: Vec::new(),
                emit: Vec::new(),
                ordered: None,
                since_ms: 0,
                detail: note.detail.clone(),
                candidate: note.candidate.clone(),
                awaits_approval: note.awaits_approval,
                pinned: note.pinned,
                steps: note.steps.clone(),
                counts: Counts::default(),
            });
        }
        reports
    }

    /// Stops every lane, and waits until what was under way is finished or given back.
    pub(crate) async fn stop(&self) {
        let running = {
            let mut inner = self.locked();
            inner.stopped = true;
            std::mem::take(&mut inner.running)
        };
        for plugin in running.values() {
            plugin.lanes.values().for_each(|lane| lane.tell(Mode::Stop));
        }
        for plugin in running.into_values() {
            stop(plugin).await;
        }
    }
}

/// Whether a version can take the seat of another without new lanes.
fn same_lanes(old: &Version, new: &Version) -> bool {
    let (old, new) = (&old.manifest, &new.manifest);
    old.group == new.group
        && old.subscribed == new.subscribed
        && old.ordered == new.ordered
        && old.concurrency == new.concurrency
}

async fn stop(running: RunningPlugin) -> Counts {
    let mut past = running.past;
    running.lanes.values().for_each(|lane| lane.tell(Mode::Stop));
    for lane in running.lanes.into_values() {
        if let Err(error) = lane.task.await {
            tracing::error!(%error, "a bug of the host: a lane ended early; what it held is taken over by others");
        }
        past.add(&lane.counters.counts());
    }
    past
}
