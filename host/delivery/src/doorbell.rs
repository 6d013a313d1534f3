//! One doorbell for the whole host: a blocking read that only says which streams have news, and a bell for each stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use cofferdam_streams::{Doorbell, Store};
use tokio::sync::Notify;

/// The bells of all streams that somebody listens to.
#[derive(Debug, Default)]
pub struct Bells {
    /// By stream, the bells of those who listen; one each, so that they are rung in their order.
    by_stream: Mutex<BTreeMap<Arc<str>, Vec<Weak<Notify>>>>,
    more: Notify,
}

impl Bells {
    /// A bell that rings when a stream has news, for as long as somebody keeps it.
    pub fn listen(&self, stream: &Arc<str>) -> Arc<Notify> {
        let mut bells = self.by_stream.lock().unwrap_or_else(PoisonError::into_inner);
        let bell = Arc::new(Notify::new());
        bells.entry(stream.clone()).or_default().push(Arc::downgrade(&bell));
        self.more.notify_one();
        bell
    }

    fn streams(&self) -> Vec<Arc<str>> {
        let mut bells = self.by_stream.lock().unwrap_or_else(PoisonError::into_inner);
        bells.values_mut().for_each(|listeners| listeners.retain(|bell| bell.strong_count() > 0));
        bells.retain(|_, listeners| !listeners.is_empty());
        bells.keys().cloned().collect()
    }

    fn ring(&self, stream: &Arc<str>) {
        let bells = self.by_stream.lock().unwrap_or_else(PoisonError::into_inner);
        bells.get(stream).into_iter().flatten().filter_map(Weak::upgrade).for_each(|bell| bell.notify_one());
    }

    /// Rings for as long as the host lives.
    pub async fn run(self: Arc<Self>, store: Store) {
        let mut doorbell = Doorbell::new();
        let mut pause = Duration::from_millis(100);
        let mut connection = None;
        let mut troubled = false;
        loop {
            let mut streams = self.streams();
            if troubled {
                // One key that is no stream fails the read of all: it is left out for as long as it is one.
                let all = streams.len();
                streams = usable(&store, streams).await;
                troubled = streams.len() < all;
            }
            if streams.is_empty() {
                tokio::select! {
                    biased;
                    () = self.more.notified() => {}
                    () = tokio::time::sleep(Duration::from_secs(2)), if troubled => {}
                }
                continue;
            }
            let open = match connection.take() {
                Some(open) => Ok(open),
                None => store.further_connection().await,
            };
            let open = match open {
                Ok(open) => open,
                Err(error) => {
                    tracing::debug!(%error, "the doorbell has no connection yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                    continue;
                }
            };
            tokio::select! {
                biased;
                rung = doorbell.wait(&*open, &streams) => match rung {
                    Ok(rung) => {
                        pause = Duration::from_millis(100);
                        rung.iter().for_each(|stream| self.ring(stream));
                        connection = Some(open);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the doorbell lost its connection");
                        // After a gap nobody knows what has come in: everybody looks.
                        doorbell = Doorbell::new();
                        troubled = true;
                        self.streams().iter().for_each(|stream| self.ring(stream));
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_secs(2));
                    }
                },
                // A new stream: the blocked read does not know it, so its connection is given up.
                () = self.more.notified() => {}
            }
        }
    }
}

/// The streams among some keys, and those that are not there yet.
async fn usable(store: &Store, keys: Vec<Arc<str>>) -> Vec<Arc<str>> {
    let mut usable = Vec::with_capacity(keys.len());
    for key in keys {
        let kind = store.key_type(&key).await;
        if kind.is_ok_and(|kind| kind == "stream" || kind == "none") {
            usable.push(key);
        }
    }
    usable
}
