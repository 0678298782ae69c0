//! The catalog: which function a request is for.
//!
//! Owns the immutable table of live functions that every invocation reads without a lock. Knows nothing about how it is filled
//! from the registry. Invariant: one catalog is one moment's truth: a request sees all of a deploy, or nothing of it.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderValue;
use http::request::Parts;

use crate::capability::Environment;
use crate::engine::{Shape, UnknownKind};
use crate::fault::{Code, Fault};
use crate::grants::Grants;
use crate::id::{FunctionName, TenantId};
use crate::limits::{Limit, Limits};
use crate::meter::{Admission, FunctionMeter};
use crate::registry::{FunctionRecord, RevisionRecord};
use crate::route::Route;
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
}

/// What all functions of a node have in common.
#[derive(Debug)]
pub struct Base {
    /// Room for their logs.
    pub logs: Arc<LogSpace>,
    /// What each may reach.
    pub grants: Grants,
}

impl Function {
    /// Makes a function of what the registry holds. `before`: the same function until now, whose log, totals and (if the limits
    /// are the same) places it keeps.
    ///
    /// # Errors
    /// When a newer version of hob stored a kind that this one does not know.
    pub fn new(record: FunctionRecord, before: Option<&Self>, base: &Base) -> Result<Self, UnknownKind> {
        let FunctionRecord { tenant, name, live: revision, .. } = record;
        let shape = revision.kind.parse()?;
        let manifest = &revision.manifest;
        let limits = Arc::new(manifest.limits.clone());
        let places = |limits: &Limits| {
            let admission =
                Admission::new(limits.size(Limit::Concurrency), limits.size(Limit::Queue), limits.duration(Limit::QueueWait));
            Arc::new(admission)
        };
        let same = [Limit::Concurrency, Limit::Queue, Limit::QueueWait];
        let kept = before.filter(|before| same.iter().all(|limit| before.limits.get(*limit) == limits.get(*limit)));
        let mut args = vec![name.as_str().to_owned()];
        args.extend(manifest.args.iter().cloned());
        let env = manifest.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Ok(Self {
            admission: kept.map_or_else(|| places(&limits), |before| before.admission.clone()),
            meter: before.map(|before| before.meter.clone()).unwrap_or_default(),
            log: before.map_or_else(|| Arc::new(FunctionLog::new(base.logs.clone())), |before| before.log.clone()),
            // A name is letters, digits and '-', all legal in a header.
            prefix: HeaderValue::try_from(format!("/{name}")).unwrap_or(HeaderValue::from_static("/")),
            environment: Arc::new(Environment { args, env, grants: base.grants.clone() }),
            tenant,
            name,
            revision,
            shape,
            limits,
        })
    }
}

/// All live functions.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    tenants: HashMap<TenantId, Arc<TenantCatalog>>,
}

/// The live functions of one tenant.
#[derive(Debug, Clone, Default)]
struct TenantCatalog {
    names: HashMap<FunctionName, Arc<Function>>,
    /// By the path that a route fixes, without its `/*`.
    routes: HashMap<String, Vec<(Route, Arc<Function>)>>,
}

/// A function and how much of the request's path led to it.
#[derive(Debug)]
pub struct Resolved {
    /// Which.
    pub function: Arc<Function>,
    /// Bytes of the path that it does not see.
    pub prefix_len: usize,
}

impl Catalog {
    /// Adds a function in place of an earlier one of its name.
    pub fn insert(&mut self, function: Arc<Function>) {
        let catalog = self.take(&function.tenant);
        catalog.remove(&function.name);
        catalog.add(function);
    }

    /// Removes a function.
    pub fn remove(&mut self, tenant: &TenantId, name: &FunctionName) {
        self.take(tenant).remove(name);
    }

    /// Adds many functions at once, none of which is there yet.
    pub fn extend(&mut self, functions: impl IntoIterator<Item = Function>) {
        for function in functions {
            let tenant = function.tenant.clone();
            self.take(&tenant).add(Arc::new(function));
        }
    }

    fn take(&mut self, tenant: &TenantId) -> &mut TenantCatalog {
        Arc::make_mut(self.tenants.entry(tenant.clone()).or_default())
    }

    /// A function by its name.
    #[must_use]
    pub fn get(&self, tenant: &TenantId, name: &FunctionName) -> Option<&Arc<Function>> {
        self.tenants.get(tenant)?.names.get(name)
    }

    /// All functions of a tenant, in no order.
    pub fn functions(&self, tenant: &TenantId) -> impl Iterator<Item = &Arc<Function>> {
        self.tenants.get(tenant).into_iter().flat_map(|catalog| catalog.names.values())
    }

    /// Number of functions of all tenants.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tenants.values().map(|catalog| catalog.names.len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The function that a request is for: by declared route, longest match first, else by name.
    ///
    /// # Errors
    /// `not-found` when no function answers there; `bad-request` for a first segment that can be no name.
    /// # Cost
    /// One look-up for each segment of the path if the tenant has routes, else one.
    pub fn resolve(&self, tenant: &TenantId, head: &Parts) -> Result<Resolved, Fault> {
        let path = head.uri.path();
        let catalog = self.tenants.get(tenant);
        if let Some(function) = catalog.and_then(|catalog| catalog.by_route(head, path)) {
            return Ok(Resolved { function, prefix_len: 0 });
        }
        let name = path.strip_prefix('/').and_then(|rest| rest.split('/').next()).unwrap_or_default();
        match catalog.and_then(|catalog| catalog.names.get(name)) {
            Some(function) => Ok(Resolved { function: function.clone(), prefix_len: 1 + name.len() }),
            None => Err(unknown(path, name)),
        }
    }
}

fn nothing_at(path: &str) -> Fault {
    let path: String = path.chars().take(200).collect();
    Fault::new(Code::NotFound, format!("no function answers at '{path}'")).hint("list them with: hob ls")
}

fn unknown(path: &str, name: &str) -> Fault {
    match name.parse::<FunctionName>() {
        Ok(_) => nothing_at(path),
        // The root is a place where nothing is, not a wrong name.
        Err(_) if name.is_empty() => nothing_at(path),
        Err(error) => Fault::new(Code::BadRequest, error.to_string()),
    }
}

impl TenantCatalog {
    fn add(&mut self, function: Arc<Function>) {
        for route in &function.revision.manifest.route {
            self.routes.entry(route.path.base().into()).or_default().push((route.clone(), function.clone()));
        }
        self.names.insert(function.name.clone(), function);
    }

    fn remove(&mut self, name: &FunctionName) {
        if let Some(before) = self.names.remove(name) {
            for route in &before.revision.manifest.route {
                if let Some(at) = self.routes.get_mut(route.path.base()) {
                    at.retain(|(_, function)| function.name != *name);
                }
            }
            self.routes.retain(|_, at| !at.is_empty());
        }
    }

    fn by_route(&self, head: &Parts, path: &str) -> Option<Arc<Function>> {
        if self.routes.is_empty() {
            return None;
        }
        let host = host(head);
        let mut base = path;
        loop {
            let at = self.routes.get(base).into_iter().flatten();
            let matching = at.filter(|(route, _)| route.matches(&host, head.method.as_str(), path));
            if let Some((_, function)) = matching.max_by_key(|(route, _)| route.rank()) {
                return Some(function.clone());
            }
            base = &base[..base.rfind('/')?];
        }
    }
}

/// The host that a request names, lower case and without its port.
fn host(head: &Parts) -> String {
    let named = head.headers.get(http::header::HOST).and_then(|value| value.to_str().ok());
    let named = named.or(head.uri.host()).unwrap_or_default();
    let without_port = match named.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => named,
    };
    without_port.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Digest, RevisionNumber};
    use crate::manifest::Manifest;

    fn function(name: &str, routes: &[&str]) -> Function {
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
            notes: vec![],
        };
        let record =
            FunctionRecord { tenant: TenantId::default(), name: name.parse().unwrap(), live, created_ms: 0, updated_ms: 0 };
        let base = Base { logs: LogSpace::new(1 << 20, 1 << 20), grants: Grants::default() };
        Function::new(record, None, &base).unwrap()
    }

    fn resolve(catalog: &Catalog, path: &str) -> Result<(String, usize), Code> {
        let head = http::Request::builder().uri(path).body(()).unwrap().into_parts().0;
        match catalog.resolve(&TenantId::default(), &head) {
            Ok(resolved) => Ok((resolved.function.name.to_string(), resolved.prefix_len)),
            Err(fault) => Err(fault.code),
        }
    }

    #[test]
    fn routes_come_before_names_and_longer_ones_first() {
        let mut catalog = Catalog::default();
        catalog.extend([function("a", &["/b/*"]), function("b", &[]), function("c", &["/b/c/*", "/b/exact"])]);
        assert_eq!(resolve(&catalog, "/a/x?q"), Ok(("a".into(), 2)));
        assert_eq!(resolve(&catalog, "/a"), Ok(("a".into(), 2)));
        assert_eq!(resolve(&catalog, "/b/x"), Ok(("a".into(), 0)));
        assert_eq!(resolve(&catalog, "/b"), Ok(("a".into(), 0)));
        assert_eq!(resolve(&catalog, "/b/c"), Ok(("c".into(), 0)));
        assert_eq!(resolve(&catalog, "/b/c/d"), Ok(("c".into(), 0)));
        assert_eq!(resolve(&catalog, "/b/cd"), Ok(("a".into(), 0)));
        assert_eq!(resolve(&catalog, "/b/exact"), Ok(("c".into(), 0)));
        assert_eq!(resolve(&catalog, "/b/exact/x"), Ok(("a".into(), 0)));
        assert_eq!(resolve(&catalog, "/zzz"), Err(Code::NotFound));
        assert_eq!(resolve(&catalog, "/"), Err(Code::NotFound));
        assert_eq!(resolve(&catalog, "/A_b"), Err(Code::BadRequest));
    }

    #[test]
    fn a_removed_function_leaves_its_routes() {
        let mut catalog = Catalog::default();
        catalog.extend([function("a", &["/*"])]);
        assert_eq!(resolve(&catalog, "/x"), Ok(("a".into(), 0)));
        catalog.insert(Arc::new(function("a", &["/y"])));
        assert_eq!((resolve(&catalog, "/x"), resolve(&catalog, "/y")), (Err(Code::NotFound), Ok(("a".into(), 0))));
        catalog.remove(&TenantId::default(), &"a".parse().unwrap());
        assert_eq!((resolve(&catalog, "/y"), catalog.len()), (Err(Code::NotFound), 0));
    }
}
