//! The catalog: which function a request is for.
//!
//! Owns the immutable table that every invocation reads without a lock: the routes of all live functions, and those functions
//! that are in use. Its maps are persistent: a change copies a path of each and shares the rest with the catalog before. Knows
//! nothing about how it is filled from the registry (`functions.rs`). Invariant: one catalog is one moment's truth: the routes of
//! every function in it are those of its revision in it, so a request sees all of a deploy, or nothing of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use http::HeaderValue;
use http::request::Parts;
use rpds::HashTrieMapSync;

use super::files::Files;
use super::looked::Looked;
use crate::capability::Environment;
use crate::capability::data::DataAccess;
use crate::capability::egress::EgressAccess;
use crate::capability::explain::Explained;
use crate::capability::secrets::SecretAccess;
use crate::data::Data;
use crate::egress::Egress;
use crate::engine::{Shape, UnknownKind};
use crate::fault::{Code, Fault};
use crate::grants::Grants;
use crate::host::RequestHost;
use crate::id::{FunctionName, RevisionNumber, TenantId};
use crate::identity::Identity;
use crate::limits::{Limit, Limits};
use crate::meter::{Admission, FunctionMeter, TenantMeter};
use crate::registry::{FunctionRecord, RevisionRecord};
use crate::route::Route;
use crate::secrets::Secrets;
use crate::telemetry::logs::{FunctionLog, LogSpace};

/// A live function, as an invocation needs it.
#[derive(Debug)]
pub struct Function {
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub name: FunctionName,
    /// The live revision.
    pub revision: RevisionRecord,
    /// Kind and lane.
    pub shape: Shape,
    /// Ceilings of each invocation.
    pub limits: Arc<Limits>,
    /// Arguments and variables.
    pub environment: Arc<Environment>,
    /// Places to run and to wait.
    pub admission: Arc<Admission>,
    /// Totals since the node started, over all revisions.
    pub meter: Arc<FunctionMeter>,
    /// Log, over all revisions.
    pub log: Arc<FunctionLog>,
    /// Value of `hob-path-prefix` when it is reached by its name.
    pub prefix: HeaderValue,
    /// When its secrets were last looked at.
    pub(super) looked: Looked,
    /// Whether it was looked up since this was last asked.
    recent: AtomicBool,
}

/// What a function has besides its revision, and keeps from one revision to the next.
#[derive(Debug, Default)]
pub struct Kept {
    /// Places, for functions with these limits.
    pub admission: Option<(Arc<Limits>, Arc<Admission>)>,
    /// Totals.
    pub meter: Option<Arc<FunctionMeter>>,
    /// Log.
    pub log: Option<Arc<FunctionLog>>,
    /// What it said already of this revision.
    pub explained: Option<(RevisionNumber, Arc<Explained>)>,
}

/// What all functions of a node have in common.
#[derive(Debug)]
pub struct Base {
    /// Room for their logs.
    pub logs: Arc<LogSpace>,
    /// What each may reach of the host.
    pub grants: Grants,
    /// The node's data, of which each reaches what its manifest grants.
    pub data: Option<Arc<Data>>,
    /// Where folders lie that a manifest grants.
    pub files: Option<Files>,
    /// The node's client for requests to elsewhere, of which each reaches what its manifest grants.
    pub egress: Option<Egress>,
    /// The node's secrets, of which each reads what its manifest grants.
    pub secrets: Option<Arc<Secrets>>,
    /// Who may invoke those that ask for a token; none where nobody may.
    pub identity: Option<Arc<Identity>>,
}

impl Base {
    /// The counters of a tenant.
    fn tenant(&self, tenant: &TenantId) -> Arc<TenantMeter> {
        self.identity.as_ref().map(|identity| identity.meters().of(tenant)).unwrap_or_default()
    }
}

impl Function {
    /// Makes a function of what the registry holds. `kept`: what there is of it already; of its places only as far as the limits
    /// are the same.
    ///
    /// # Errors
    /// When a newer version of hob stored a kind that this one does not know.
    pub fn new(record: FunctionRecord, kept: Kept, base: &Base) -> Result<Self, UnknownKind> {
        let FunctionRecord { tenant, name, live: revision, .. } = record;
        let shape = revision.kind.parse()?;
        let manifest = &revision.manifest;
        let limits = Arc::new(manifest.limits.clone());
        let same = |before: &Limits| {
            [Limit::Concurrency, Limit::Queue, Limit::QueueWait].iter().all(|limit| before.get(*limit) == limits.get(*limit))
        };
        let admission = kept.admission.filter(|(before, _)| same(before)).map(|(_, admission)| admission);
        let admission = admission.unwrap_or_else(|| {
            let (running, waiting) = (limits.size(Limit::Concurrency), limits.size(Limit::Queue));
            Arc::new(Admission::new(running, waiting, limits.duration(Limit::QueueWait)))
        });
        let mut args = vec![name.as_str().to_owned()];
        args.extend(manifest.args.iter().cloned());
        let env = manifest.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let meter = kept.meter.unwrap_or_else(|| Arc::new(FunctionMeter::new(base.tenant(&tenant))));
        let data = base.data.clone().map(|data| DataAccess::new(data, tenant.clone(), &manifest.grants.data).metered(&meter));
        let files = base.files.as_ref().map(|files| files.of(&tenant, &revision));
        let clock = manifest.grants.clock;
        let egress = base.egress.as_ref().map(|egress| match base.grants.net {
            true => EgressAccess::any(egress),
            false => EgressAccess::new(egress, &tenant, &manifest.grants.http).metered(&meter),
        });
        let explained = kept.explained.filter(|(number, _)| *number == revision.number).map(|(_, explained)| explained);
        let explained = explained.unwrap_or_default();
        let secrets = base.secrets.clone();
        let secrets = secrets.map(|secrets| SecretAccess::new(secrets, tenant.clone(), &manifest.grants.secrets));
        Ok(Self {
            admission,
            log: kept.log.unwrap_or_else(|| Arc::new(FunctionLog::of(base.logs.clone(), meter.tenant().log().clone()))),
            meter,
            // A name is letters, digits and '-', all legal in a header.
            prefix: HeaderValue::try_from(format!("/{name}")).unwrap_or(HeaderValue::from_static("/")),
            environment: Arc::new(Environment {
                args,
                env,
                env_of_request: 0,
                env_of_secrets: 0,
                grants: base.grants.clone(),
                data: Arc::new(data.unwrap_or_default()),
                files: Arc::new(files.unwrap_or_default()),
                clock,
                explained,
                egress: Arc::new(egress.unwrap_or_default()),
                secrets: Arc::new(secrets.unwrap_or_default()),
            }),
            looked: Looked::default(),
            recent: AtomicBool::new(true),
            tenant,
            name,
            revision,
            shape,
            limits,
        })
    }

    /// What its next revision, or its next time in memory, begins with.
    #[must_use]
    pub fn kept(&self) -> Kept {
        Kept {
            admission: Some((self.limits.clone(), self.admission.clone())),
            meter: Some(self.meter.clone()),
            log: Some(self.log.clone()),
            explained: Some((self.revision.number, self.environment.explained.clone())),
        }
    }

    /// Whether no invocation runs, waits, or has just found it. `owners`: references that the caller knows to be its own; nobody
    /// may be able to get another one meanwhile.
    #[must_use]
    pub fn is_idle(self: &Arc<Self>, owners: usize) -> bool {
        // An invocation that found an earlier revision shares the places.
        let is_owned = Arc::strong_count(self) == owners && Arc::strong_count(&self.admission) == 1;
        // Whoever let go of it before has taken its place before that.
        fence(Ordering::Acquire);
        is_owned && self.admission.occupancy() == (0, 0)
    }

    /// Whether secrets are in its snapshot.
    #[must_use]
    pub fn depends_on_secrets(&self) -> bool {
        self.revision.snapshot.as_ref().is_some_and(|snapshot| snapshot.secrets.is_some())
    }

    fn touch(&self) {
        // Read first: a line that nobody writes stays in every core's cache.
        if !self.recent.load(Ordering::Relaxed) {
            self.recent.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was looked up since this was last called.
    pub fn take_recent(&self) -> bool {
        self.recent.swap(false, Ordering::Relaxed)
    }
}

/// All routes, and the functions in use.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    tenants: HashTrieMapSync<TenantId, TenantCatalog>,
}

/// What there is of one tenant.
#[derive(Debug, Clone, Default)]
struct TenantCatalog {
    names: HashTrieMapSync<FunctionName, Arc<Function>>,
    /// By the path that a route fixes, without its `/*`.
    routes: HashTrieMapSync<String, Vec<(Route, FunctionName)>>,
    /// What `routes` has of each function that has any.
    holders: HashTrieMapSync<FunctionName, Vec<Route>>,
}

/// A function and how much of the request's path led to it.
#[derive(Debug)]
pub struct Resolved {
    /// Which.
    pub function: Arc<Function>,
    /// Bytes of the path that it does not see.
    pub prefix_len: usize,
}

/// What a catalog knows of a request.
#[derive(Debug)]
pub enum Found {
    /// The function.
    Hot(Resolved),
    /// Its name; whether there is such a function, the registry knows.
    Cold(FunctionName),
}

impl Catalog {
    /// Adds a function in place of an earlier one of its name, and its routes in place of that one's.
    pub fn insert(&mut self, function: Arc<Function>) {
        let tenant = function.tenant.clone();
        self.change(&tenant, |catalog| {
            catalog.set_routes(&function.name, &function.revision.manifest.route);
            catalog.names.insert_mut(function.name.clone(), function);
        });
    }

    /// Sets the routes of a function that need not be in use.
    pub fn set_routes(&mut self, tenant: &TenantId, name: &FunctionName, routes: &[Route]) {
        self.change(tenant, |catalog| catalog.set_routes(name, routes));
    }

    /// Takes a function out of use; its routes stay.
    pub fn evict(&mut self, tenant: &TenantId, name: &FunctionName) {
        self.change(tenant, |catalog| {
            catalog.names.remove_mut(name);
        });
    }

    /// Removes a function with its routes.
    pub fn remove(&mut self, tenant: &TenantId, name: &FunctionName) {
        self.change(tenant, |catalog| {
            catalog.names.remove_mut(name);
            catalog.set_routes(name, &[]);
        });
    }

    fn change(&mut self, tenant: &TenantId, op: impl FnOnce(&mut TenantCatalog)) {
        let mut catalog = self.tenants.get(tenant).cloned().unwrap_or_default();
        op(&mut catalog);
        if catalog.names.is_empty() && catalog.routes.is_empty() {
            self.tenants.remove_mut(tenant);
        } else {
            self.tenants.insert_mut(tenant.clone(), catalog);
        }
    }

    /// A function in use, by its name.
    #[must_use]
    pub fn get(&self, tenant: &TenantId, name: &FunctionName) -> Option<&Arc<Function>> {
        let function = self.tenants.get(tenant)?.names.get(name)?;
        function.touch();
        Some(function)
    }

    /// The functions of a tenant that are in use, in no order.
    pub fn functions(&self, tenant: &TenantId) -> impl Iterator<Item = &Arc<Function>> {
        self.tenants.get(tenant).into_iter().flat_map(|catalog| catalog.names.values())
    }

    /// The function that a request is for: by declared route, longest match first, else by name.
    ///
    /// # Errors
    /// `bad-request` for a first segment that can be no name, `not-found` where there is none.
    /// # Cost
    /// One look-up for each segment of the path if the tenant has routes, else one.
    pub fn resolve(&self, tenant: &TenantId, head: &Parts) -> Result<Found, Fault> {
        let path = head.uri.path();
        let catalog = self.tenants.get(tenant);
        let routed = catalog.and_then(|catalog| catalog.by_route(head, path));
        let segment = path.strip_prefix('/').and_then(|rest| rest.split('/').next()).unwrap_or_default();
        let (name, prefix_len) = routed.map_or((segment, 1 + segment.len()), |name| (name.as_str(), 0));
        match catalog.and_then(|catalog| catalog.names.get(name)) {
            Some(function) => {
                function.touch();
                Ok(Found::Hot(Resolved { function: function.clone(), prefix_len }))
            }
            None => match routed.cloned().map_or_else(|| name.parse(), Ok) {
                Ok(name) => Ok(Found::Cold(name)),
                // The root is a place where nothing is, not a wrong name.
                Err(_) if name.is_empty() => Err(nothing_at(path)),
                Err(error) => Err(Fault::new(Code::BadRequest, error.to_string())),
            },
        }
    }
}

/// The fault for a path that leads to no function.
pub(super) fn nothing_at(path: &str) -> Fault {
    let path: String = path.chars().take(200).collect();
    Fault::new(Code::NotFound, format!("no function answers at '{path}'")).hint("list them with: hob ls")
}

impl TenantCatalog {
    fn set_routes(&mut self, name: &FunctionName, routes: &[Route]) {
        let before = self.holders.get(name).cloned().unwrap_or_default();
        if before == routes {
            return;
        }
        for route in before {
            let Some(mut at) = self.routes.get(route.path.base()).cloned() else { continue };
            at.retain(|(_, holder)| holder != name);
            self.put(route.path.base(), at);
        }
        for route in routes {
            let mut at = self.routes.get(route.path.base()).cloned().unwrap_or_default();
            at.push((route.clone(), name.clone()));
            self.put(route.path.base(), at);
        }
        match routes {
            [] => _ = self.holders.remove_mut(name),
            routes => self.holders.insert_mut(name.clone(), routes.to_vec()),
        }
    }

    fn put(&mut self, base: &str, at: Vec<(Route, FunctionName)>) {
        match at.is_empty() {
            true => _ = self.routes.remove_mut(base),
            false => self.routes.insert_mut(base.into(), at),
        }
    }

    fn by_route(&self, head: &Parts, path: &str) -> Option<&FunctionName> {
        if self.routes.is_empty() {
            return None;
        }
        let host = RequestHost::of(head);
        let mut base = path;
        loop {
            let at = self.routes.get(base).into_iter().flatten();
            let matching = at.filter(|(route, _)| route.matches(host.as_str(), head.method.as_str(), path));
            if let Some((_, name)) = matching.max_by_key(|(route, _)| route.rank()) {
                return Some(name);
            }
            base = &base[..base.rfind('/')?];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Digest, RevisionNumber};
    use crate::manifest::Manifest;

    fn function(name: &str, routes: &[&str]) -> Arc<Function> {
        let manifest =
            Manifest { route: routes.iter().map(|path| Route::new(path, None, None).unwrap()).collect(), ..Manifest::default() };
        let live = RevisionRecord {
            number: RevisionNumber(1),
            wasm: Digest::of(b""),
            wasm_bytes: 0,
            artifact: Digest::of(b""),
            artifact_bytes: 0,
            kind: "handler".into(),
            manifest,
            created_ms: 0,
            snapshot: None,
            bundle: None,
            notes: vec![],
        };
        let record =
            FunctionRecord { tenant: TenantId::default(), name: name.parse().unwrap(), live, created_ms: 0, updated_ms: 0 };
        let base = Base {
            logs: LogSpace::new(1 << 20, 1 << 20),
            grants: Grants::default(),
            data: None,
            files: None,
            egress: None,
            secrets: None,
            identity: None,
        };
        Arc::new(Function::new(record, Kept::default(), &base).unwrap())
    }

    fn resolve(catalog: &Catalog, path: &str) -> Result<(String, usize), Code> {
        let head = http::Request::builder().uri(path).body(()).unwrap().into_parts().0;
        match catalog.resolve(&TenantId::default(), &head) {
            Ok(Found::Hot(resolved)) => Ok((resolved.function.name.to_string(), resolved.prefix_len)),
            Ok(Found::Cold(name)) => Ok((format!("{name}?"), 0)),
            Err(fault) => Err(fault.code),
        }
    }

    #[test]
    fn routes_come_before_names_and_longer_ones_first() {
        let mut catalog = Catalog::default();
        for function in [function("a", &["/b/*"]), function("b", &[]), function("c", &["/b/c/*", "/b/exact"])] {
            catalog.insert(function);
        }
        assert_eq!(resolve(&catalog, "/a/x?q"), Ok(("a".into(), 2)));
        assert_eq!(resolve(&catalog, "/a"), Ok(("a".into(), 2)));
        assert_eq!(resolve(&catalog, "/b/x"), Ok(("a".into(), 0)));
        assert_eq!(resolve(&catalog, "/b"), Ok(("a".into(), 0)));
        assert_eq!(resolve(&catalog, "/b/c"), Ok(("c".into(), 0)));
        assert_eq!(resolve(&catalog, "/b/c/d"), Ok(("c".into(), 0)));
        assert_eq!(resolve(&catalog, "/b/cd"), Ok(("a".into(), 0)));
        assert_eq!(resolve(&catalog, "/b/exact"), Ok(("c".into(), 0)));
        assert_eq!(resolve(&catalog, "/b/exact/x"), Ok(("a".into(), 0)));
        assert_eq!(resolve(&catalog, "/zzz"), Ok(("zzz?".into(), 0)));
        assert_eq!(resolve(&catalog, "/"), Err(Code::NotFound));
        assert_eq!(resolve(&catalog, "/A_b"), Err(Code::BadRequest));
    }

    #[test]
    fn a_removed_function_leaves_its_routes() {
        let mut catalog = Catalog::default();
        catalog.insert(function("a", &["/*"]));
        let before = catalog.clone();
        assert_eq!(resolve(&catalog, "/x"), Ok(("a".into(), 0)));
        catalog.insert(function("a", &["/y"]));
        assert_eq!((resolve(&catalog, "/x"), resolve(&catalog, "/y")), (Ok(("x?".into(), 0)), Ok(("a".into(), 0))));
        catalog.evict(&TenantId::default(), &"a".parse().unwrap());
        assert_eq!(resolve(&catalog, "/y"), Ok(("a?".into(), 0)), "its routes still lead to it");
        catalog.remove(&TenantId::default(), &"a".parse().unwrap());
        assert_eq!(resolve(&catalog, "/y"), Ok(("y?".into(), 0)));
        assert!(catalog.tenants.is_empty(), "nothing is left");
        assert_eq!(resolve(&before, "/x"), Ok(("a".into(), 0)), "who holds a catalog sees one moment");
    }

    #[test]
    fn routes_alone_lead_to_a_name() {
        let mut catalog = Catalog::default();
        let (tenant, routes) = (TenantId::default(), ["/x/*", "/y"].map(|path| Route::new(path, None, None).unwrap()));
        catalog.set_routes(&tenant, &"a".parse().unwrap(), &routes);
        catalog.set_routes(&tenant, &"b".parse().unwrap(), &[Route::new("/x/*", None, Some("PUT")).unwrap()]);
        assert_eq!((resolve(&catalog, "/x/1"), resolve(&catalog, "/y")), (Ok(("a?".into(), 0)), Ok(("a?".into(), 0))));
        catalog.set_routes(&tenant, &"a".parse().unwrap(), &routes[1..]);
        assert_eq!(resolve(&catalog, "/x/1"), Ok(("x?".into(), 0)));
        catalog.set_routes(&tenant, &"b".parse().unwrap(), &[]);
        catalog.set_routes(&tenant, &"a".parse().unwrap(), &[]);
        assert!(catalog.tenants.is_empty());
    }
}
