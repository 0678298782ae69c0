//! The functions of a node: those in use in memory, all others a read of the registry away.
//!
//! Owns which functions are in the catalog, and what outlives their time there. A function goes through three places:
//!
//! ```text
//! hot      in the catalog, at most `hot_max`            whole
//! leaving  evicted, and an invocation still has it      whole
//! rested   was invoked or wrote a log                   totals and log
//! ```
//!
//! One that is in none of them costs no memory. Knows nothing about templates and invocations. Invariants: a function has one
//! [`Admission`](crate::meter::Admission) at a time, whatever is evicted while it runs; totals and logs last until it is removed;
//! what was read from the registry before a change was seen by anybody never enters the catalog after it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};
use http::request::Parts;
use lru::LruCache;

use super::catalog::{Base, Catalog, Found, Function, Kept, Resolved, nothing_at};
use crate::capability::explain::Explained;
use crate::engine::UnknownKind;
use crate::fault::{Code, Fault};
use crate::id::{Digest, FunctionName, RevisionNumber, TenantId};
use crate::meter::FunctionMeter;
use crate::registry::{FunctionRecord, Registry, RegistryError};
use crate::route::Route;
use crate::telemetry::logs::FunctionLog;

/// Functions that an eviction spares because they were in use lately, before it takes the next one anyway: a bound on the time
/// that one look-up of a cold function may cost.
const SPARED_MAX: usize = 16;
/// Functions on their way out that are looked at after each eviction: more than come in, so that they become fewer.
const LEAVING_STEP: usize = 8;

pub(super) type Key = (TenantId, FunctionName);

/// See the module.
#[derive(Debug)]
pub(super) struct Functions {
    catalog: ArcSwap<Catalog>,
    /// Rises under the lock of `shelf` with each publish and removal, and with each reading of a function that is being changed.
    changes: AtomicU64,
    shelf: Mutex<Shelf>,
    registry: Arc<Registry>,
    base: Base,
    hot_max: usize,
}

/// The totals of one function.
#[derive(Debug)]
pub struct Metered {
    /// Its name.
    pub name: FunctionName,
    /// The native code of its live revision, if the function is in memory.
    pub artifact: Option<Digest>,
    /// Its totals.
    pub meter: Arc<FunctionMeter>,
}

/// What only those who change the catalog need.
#[derive(Debug)]
struct Shelf {
    /// What is in the catalog, by how long it has been there or was last spared.
    hot: LruCache<Key, Arc<Function>>,
    leaving: LruCache<Key, Arc<Function>>,
    rested: HashMap<TenantId, HashMap<FunctionName, Rested>>,
    /// The function whose change is being committed: what is read of it may be older or newer than what another read has seen.
    changing: Option<Key>,
}

/// What stays of a function that is not in use.
#[derive(Debug)]
struct Rested {
    meter: Option<Arc<FunctionMeter>>,
    /// Few have said anything.
    said: Option<Box<Said>>,
}

/// What a function said, and of which revision it was said what it lacks.
#[derive(Debug)]
struct Said {
    log: Arc<FunctionLog>,
    explained: (RevisionNumber, Arc<Explained>),
}

impl Functions {
    /// The functions of `registry`, none of them in memory. `hot_max`: most that are, at least 1.
    ///
    /// # Errors
    /// [`RegistryError`].
    /// # Cost
    /// About 2 us for each route; nothing for functions.
    pub(super) fn new(registry: Arc<Registry>, base: Base, hot_max: usize) -> Result<Self, RegistryError> {
        let mut routes: HashMap<Key, Vec<Route>> = HashMap::new();
        for (tenant, route, name) in registry.routes()? {
            routes.entry((tenant, name)).or_default().push(route);
        }
        let mut catalog = Catalog::default();
        for ((tenant, name), routes) in routes {
            catalog.set_routes(&tenant, &name, &routes);
        }
        let (hot, leaving) = (LruCache::unbounded(), LruCache::unbounded());
        let shelf = Shelf { hot, leaving, rested: HashMap::new(), changing: None };
        Ok(Self {
            catalog: ArcSwap::from_pointee(catalog),
            changes: AtomicU64::new(0),
            shelf: Mutex::new(shelf),
            registry,
            base,
            hot_max: hot_max.max(1),
        })
    }

    /// Every statement below leaves the shelf whole.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The functions in use.
    pub(super) fn catalog(&self) -> Guard<Arc<Catalog>> {
        self.catalog.load()
    }

    /// The function that a request is for.
    ///
    /// # Errors
    /// `not-found`, `bad-request` for a first segment that can be no name, `damaged` when its record is.
    /// # Cost
    /// That of [`Catalog::resolve`]; for a function that is not in use, and for a name without one, a read of the registry.
    pub(super) fn resolve(&self, tenant: &TenantId, head: &Parts) -> Result<Resolved, Fault> {
        let mut name = match self.catalog.load().resolve(tenant, head)? {
            Found::Hot(resolved) => return Ok(resolved),
            Found::Cold(name) => name,
        };
        // In the catalog that has the function its route may lead elsewhere by now, so it is asked again; each further turn means
        // that another deploy was published meanwhile.
        while let Some(catalog) = self.load(tenant, &name)? {
            name = match catalog.resolve(tenant, head)? {
                Found::Hot(resolved) => return Ok(resolved),
                Found::Cold(name) => name,
            };
        }
        Err(nothing_at(head.uri.path()))
    }

    /// A function by its name, `None` if it is not deployed.
    ///
    /// # Errors
    /// `damaged` when its record is, `internal` when the registry cannot be read.
    pub(super) fn get(&self, tenant: &TenantId, name: &FunctionName) -> Result<Option<Arc<Function>>, Fault> {
        if let Some(function) = self.catalog.load().get(tenant, name) {
            return Ok(Some(function.clone()));
        }
        Ok(self.load(tenant, name)?.and_then(|catalog| catalog.get(tenant, name).cloned()))
    }

    /// Reads a function from the registry into the catalog, and returns one that has it; `None` if it is not deployed.
    fn load(&self, tenant: &TenantId, name: &FunctionName) -> Result<Option<Arc<Catalog>>, Fault> {
        loop {
            let before = self.changes.load(Ordering::Acquire);
            let Some(record) = self.registry.function(tenant, name).map_err(|error| unreadable(&error))? else {
                return Ok(None);
            };
            let mut shelf = self.shelf();
            if self.changes.load(Ordering::Acquire) != before {
                // It may be older than what was published since.
                continue;
            }
            let catalog = self.catalog.load_full();
            if catalog.get(tenant, name).is_some() {
                return Ok(Some(catalog));
            }
            drop(catalog);
            if shelf.changing.as_ref().is_some_and(|changing| changing.0 == *tenant && changing.1 == *name) {
                // A deploy that is committed and not published yet may have been read: whoever read before that reads again, or
                // the old revision could follow the new one.
                self.changes.fetch_add(1, Ordering::Release);
            }
            // With its routes: of such a deploy, this shows all.
            return self.put(&mut shelf, record).map(Some).map_err(|error| unknown_kind(name, &error));
        }
    }

    /// Puts a function into the catalog, in place of an earlier one of its name.
    fn put(&self, shelf: &mut Shelf, record: FunctionRecord) -> Result<Arc<Catalog>, UnknownKind> {
        let key = (record.tenant.clone(), record.name.clone());
        // First, because it alone can fail.
        let function = Arc::new(Function::new(record, shelf.kept(&key), &self.base)?);
        let mut catalog = Catalog::clone(&self.catalog.load());
        if !shelf.hot.contains(&key) {
            self.make_room(shelf, &mut catalog);
        }
        catalog.insert(function.clone());
        shelf.leaving.pop(&key);
        shelf.forget(&key);
        shelf.hot.put(key, function);
        Ok(self.store(shelf, catalog))
    }

    /// Evicts until one more may come.
    fn make_room(&self, shelf: &mut Shelf, catalog: &mut Catalog) {
        let mut spared = 0;
        while shelf.hot.len() >= self.hot_max
            && let Some((key, function)) = shelf.hot.pop_lru()
        {
            if function.take_recent() && spared < SPARED_MAX {
                spared += 1;
                shelf.hot.put(key, function);
                continue;
            }
            catalog.evict(&key.0, &key.1);
            shelf.leaving.put(key, function);
        }
    }

    /// Makes a catalog the one that requests see.
    fn store(&self, shelf: &mut Shelf, catalog: Catalog) -> Arc<Catalog> {
        let catalog = Arc::new(catalog);
        self.catalog.store(catalog.clone());
        shelf.settle();
        catalog
    }

    /// Says which function's change is being committed, from before that to after it was published.
    pub(super) fn set_changing(&self, changing: Option<Key>) {
        self.shelf().changing = changing;
    }

    /// Makes a revision the one that requests see. Returns the function as it was, if it was in memory.
    ///
    /// # Errors
    /// [`UnknownKind`]; nothing has changed then.
    pub(super) fn publish(&self, record: FunctionRecord) -> Result<Option<Arc<Function>>, UnknownKind> {
        let mut shelf = self.shelf();
        let before = self.catalog.load().get(&record.tenant, &record.name).cloned();
        self.put(&mut shelf, record)?;
        self.changes.fetch_add(1, Ordering::Release);
        Ok(before)
    }

    /// Takes a function away, with all that is known of it. Returns it, if it was in memory.
    pub(super) fn remove(&self, tenant: &TenantId, name: &FunctionName) -> Option<Arc<Function>> {
        let mut shelf = self.shelf();
        let mut catalog = Catalog::clone(&self.catalog.load());
        let before = catalog.get(tenant, name).cloned();
        catalog.remove(tenant, name);
        let key = (tenant.clone(), name.clone());
        shelf.hot.pop(&key);
        shelf.leaving.pop(&key);
        shelf.forget(&key);
        self.changes.fetch_add(1, Ordering::Release);
        self.store(&mut shelf, catalog);
        before
    }

    /// Totals of a function, and how many of its invocations run and wait; without reading it into memory.
    pub(super) fn usage(&self, tenant: &TenantId, name: &FunctionName) -> (Arc<FunctionMeter>, (usize, usize)) {
        let mut shelf = self.shelf();
        let Kept { admission, meter, .. } = shelf.kept(&(tenant.clone(), name.clone()));
        let occupancy = admission.map(|(_, admission)| admission.occupancy()).unwrap_or_default();
        (meter.unwrap_or_default(), occupancy)
    }

    /// What a function that is in memory is made of; without reading it into memory.
    pub(super) fn artifact(&self, tenant: &TenantId, name: &FunctionName) -> Option<Digest> {
        self.shelf().hot.peek(&(tenant.clone(), name.clone())).map(|function| function.revision.artifact)
    }

    /// Gives back the room for minutes of functions that nobody used for an hour. `now`: the minute that runs.
    pub(super) fn rest_meters(&self, now: u64) {
        let shelf = self.shelf();
        let whole = shelf.hot.iter().chain(shelf.leaving.iter()).map(|(_, function)| &function.meter);
        let rested = shelf.rested.values().flatten().filter_map(|(_, rested)| rested.meter.as_ref());
        whole.chain(rested).for_each(|meter| meter.series().rest(now));
    }

    /// How often each function in memory was invoked; the one that was used last first.
    pub(super) fn counts(&self) -> Vec<(Key, u64)> {
        let shelf = self.shelf();
        let whole = shelf.hot.iter().chain(shelf.leaving.iter());
        whole.map(|(key, function)| (key.clone(), function.meter.starts().total())).collect()
    }

    /// Totals of all functions of a tenant that were invoked, whether they are in memory or not.
    ///
    /// # Cost
    /// Under 1 us a function, during which no function is read into memory.
    pub(super) fn metered(&self, tenant: &TenantId) -> Vec<Metered> {
        let shelf = self.shelf();
        let whole = shelf.hot.iter().chain(shelf.leaving.iter()).filter(|(key, _)| key.0 == *tenant).map(|(key, function)| {
            Metered { name: key.1.clone(), artifact: Some(function.revision.artifact), meter: function.meter.clone() }
        });
        let rested = shelf
            .rested
            .get(tenant)
            .into_iter()
            .flatten()
            .filter_map(|(name, rested)| Some(Metered { name: name.clone(), artifact: None, meter: rested.meter.clone()? }));
        whole.chain(rested).collect()
    }
}

impl Shelf {
    /// What is known of a function, wherever it is.
    fn kept(&mut self, key: &Key) -> Kept {
        if let Some(function) = self.hot.peek(key).or_else(|| self.leaving.peek(key)) {
            return function.kept();
        }
        let rested = self.rested.get(&key.0).and_then(|names| names.get(&key.1));
        let kept = |rested: &Rested| Kept {
            admission: None,
            meter: rested.meter.clone(),
            log: rested.said.as_ref().map(|said| said.log.clone()),
            explained: rested.said.as_ref().map(|said| said.explained.clone()),
        };
        rested.map(kept).unwrap_or_default()
    }

    /// Drops what is rested of a function.
    fn forget(&mut self, key: &Key) {
        if let Some(names) = self.rested.get_mut(&key.0) {
            names.remove(&key.1);
            if names.is_empty() {
                self.rested.remove(&key.0);
            }
        }
    }

    /// Lets go of functions that nobody has any more. Called after the catalog was stored: then no catalog that anybody holds
    /// has them, or it would count as an owner, and so nobody can get at them again.
    fn settle(&mut self) {
        for _ in 0..LEAVING_STEP.min(self.leaving.len()) {
            let Some((key, function)) = self.leaving.pop_lru() else { return };
            if !function.is_idle(1) {
                self.leaving.put(key, function);
                continue;
            }
            // What somebody still holds, such as an instance that is just ending, is going to be written.
            let meter = Some(&function.meter).filter(|meter| Arc::strong_count(meter) > 1 || !meter.is_untouched());
            let log = Some(&function.log).filter(|log| log.settle() || Arc::strong_count(log) > 1);
            if meter.is_some() || log.is_some() {
                let explained = || (function.revision.number, function.environment.explained.clone());
                let said = log.map(|log| Box::new(Said { log: log.clone(), explained: explained() }));
                let rested = Rested { meter: meter.cloned(), said };
                self.rested.entry(key.0).or_default().insert(key.1, rested);
            }
        }
    }
}

/// The fault for a function whose record cannot be read.
fn unreadable(error: &RegistryError) -> Fault {
    match error {
        RegistryError::Damaged { .. } => {
            tracing::error!(%error, "a function cannot be read");
            Fault::new(Code::Damaged, "what this node knows about the function is damaged").hint("restore the registry")
        }
        error => error.fault(),
    }
}

/// The fault for a function that a newer version of hob deployed.
fn unknown_kind(name: &FunctionName, error: &UnknownKind) -> Fault {
    tracing::error!(%error, function = %name, "a function cannot be run by this version of hob");
    Fault::new(Code::Damaged, format!("this version of hob cannot run the function: {error}")).hint("deploy it again")
}

#[cfg(test)]
mod tests;
