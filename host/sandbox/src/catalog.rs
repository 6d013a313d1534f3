//! Name to live plugin. A swap is one atomic store: calls in flight keep the version that they began with, the next call
//! gets the new one, and nobody waits.
//!
//! Whether a version deserves to be live has been decided before it comes here.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::Plugin;

/// The live plugins. Reading costs an atomic load and a search; writing copies the map, which has a handful of entries.
#[derive(Debug, Default)]
pub struct Catalog {
    plugins: ArcSwap<BTreeMap<String, Arc<Plugin>>>,
}

impl Catalog {
    /// An empty one.
    pub fn new() -> Self {
        Catalog::default()
    }

    /// The version that is live now. Take it once for each delivery, so that the delivery runs wholly under it.
    pub fn current(&self, name: &str) -> Option<Arc<Plugin>> {
        self.plugins.load().get(name).cloned()
    }

    /// Makes a version live under its own name, and gives back the one before.
    pub fn swap(&self, plugin: Arc<Plugin>) -> Option<Arc<Plugin>> {
        let name = plugin.spec().name.clone();
        let before = self.plugins.rcu(|plugins| {
            let mut plugins = BTreeMap::clone(plugins);
            plugins.insert(name.clone(), Arc::clone(&plugin));
            plugins
        });
        before.get(&name).cloned()
    }

    /// Takes a plugin out, and gives it back.
    pub fn remove(&self, name: &str) -> Option<Arc<Plugin>> {
        let before = self.plugins.rcu(|plugins| {
            let mut plugins = BTreeMap::clone(plugins);
            plugins.remove(name);
            plugins
        });
        before.get(name).cloned()
    }

    /// The names, in order.
    pub fn names(&self) -> Vec<String> {
        self.plugins.load().keys().cloned().collect()
    }
}
