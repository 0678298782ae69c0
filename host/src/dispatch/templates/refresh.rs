//! After an upgrade of the engine: native code of the old one is replaced before anybody waits for it.
//!
//! Owns the order: the functions that were used last come first, then those whose live revision changed last, one at a time, and only
//! while no deploy is under way. (Functions that get requests come before all of them: those compile their own, see `load.rs`.) Knows
//! nothing about what is resident, and does not find out what was used (`dispatch/used.rs` does). Invariant: the data directory names this engine as the one of all live functions only after a walk that found nothing
//! of another.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::load::Subject;
use super::{Found, Keep, Templates, blocking};
use crate::artifacts::FileId;
use crate::fault::{Code, Fault};
use crate::id::{Digest, FunctionName, RevisionNumber, TenantId};
use crate::registry::{FunctionRecord, TenantRecord};

/// Functions of one page of a walk.
const PAGE: usize = 1000;
/// Functions that one walk finds; the next walk finds more. It bounds the memory, not the work.
const BATCH: usize = 1000;
/// How long to wait when builds queue up.
const PAUSE: Duration = Duration::from_secs(5);

/// The place of functions in the order of their last use; 0 is the one that was used last.
type Ranks = HashMap<(TenantId, FunctionName), usize>;
/// A revision of a function.
type Which = (TenantId, FunctionName, RevisionNumber);

impl Templates {
    /// Compiles anew what another engine compiled, for the live revision of each function of every tenant, in the order of `ranks`. Ends when there is no such thing any more.
    /// What fails is left to the first request, or to the next start. Calls `released` each time that files of the old engine may
    /// have become superfluous.
    ///
    /// # Cancellation
    /// At any time; a compilation under way goes on to its end. The next start goes on with it.
    /// # Cost
    /// Nothing if the last start with this engine came to its end. Else some 6 us a function for each walk, and one walk for each
    /// 1,000 compilations.
    pub async fn refresh(&self, ranks: Ranks, released: impl Fn()) {
        let engine = Digest::of(&self.0.fingerprint);
        if self.0.artifacts.engine() == Some(engine) {
            return;
        }
        match self.refresh_all(engine, Arc::new(ranks), released).await {
            Ok(0) => {}
            Ok(failed) => {
                tracing::warn!(failed, "functions still have native code of another engine; their first request tries again")
            }
            Err(fault) => tracing::error!(%fault, "native code of another engine is not replaced until it is needed"),
        }
    }

    /// Returns how many failed.
    async fn refresh_all(&self, engine: Digest, ranks: Arc<Ranks>, released: impl Fn()) -> Result<usize, Fault> {
        // First, because a node that goes back to the old engine half-way must not take it for the one of all.
        self.set_engine(None).await?;
        let mut failed = HashSet::new();
        loop {
            let (this, ranks) = (self.clone(), ranks.clone());
            let (batch, gone) = blocking(move || this.stale(&ranks, &failed).map(|batch| (batch, failed))).await??;
            failed = gone;
            if batch.is_empty() {
                break;
            }
            tracing::info!(functions = batch.len(), "compiling anew what another engine compiled");
            for which in batch {
                // It fails only when `deploys` is gone, which `self` holds. What it gives is a lock.
                drop(self.0.deploys.subscribe().wait_for(|count| *count == 0).await);
                match self.refresh_one(&which).await {
                    Ok(()) => {}
                    Err(fault) if fault.code == Code::Overloaded => tokio::time::sleep(PAUSE).await,
                    Err(fault) => {
                        tracing::warn!(function = %which.1, %fault, "a function cannot be compiled anew");
                        failed.insert(which);
                    }
                }
            }
            released();
        }
        if failed.is_empty() {
            self.set_engine(Some(engine)).await?;
        }
        Ok(failed.len())
    }

    async fn set_engine(&self, engine: Option<Digest>) -> Result<(), Fault> {
        let artifacts = self.0.artifacts.clone();
        blocking(move || artifacts.set_engine(engine).map_err(|error| error.fault())).await?
    }

    /// Revisions that another engine compiled, those first that were used last, then those that became live last; at most [`BATCH`].
    fn stale(&self, ranks: &Ranks, except: &HashSet<Which>) -> Result<Vec<Which>, Fault> {
        let mut first = BTreeMap::new();
        let tenants = self.0.registry.tenants().map_err(|error| error.fault())?;
        for TenantRecord { name: tenant, .. } in tenants {
            let mut after = None;
            loop {
                let page = self.page(&tenant, after.as_ref(), PAGE)?;
                let Some(last) = page.last() else { break };
                after = Some(last.name.clone());
                for record in page {
                    let which = (record.tenant.clone(), record.name.clone(), record.live.number);
                    if self.is_stale(&record) && !except.contains(&which) {
                        let function = (record.tenant.clone(), record.name.clone());
                        let rank = ranks.get(&function).copied().unwrap_or(usize::MAX);
                        first.insert((rank, Reverse(record.updated_ms), function), which);
                    }
                    if first.len() > BATCH {
                        first.pop_last();
                    }
                }
            }
        }
        Ok(first.into_values().collect())
    }

    /// Functions of a tenant in the order of their names, from the one after `after`, at most `count`.
    fn page(&self, tenant: &TenantId, after: Option<&FunctionName>, count: usize) -> Result<Vec<FunctionRecord>, Fault> {
        self.0.registry.list(tenant, after, count).map_err(|error| error.fault())
    }

    fn is_stale(&self, record: &FunctionRecord) -> bool {
        let live = &record.live;
        live.artifact != self.key_of(&record.tenant, live)
    }

    async fn refresh_one(&self, (tenant, name, number): &Which) -> Result<(), Fault> {
        let (this, tenant, name, number) = (self.clone(), tenant.clone(), name.clone(), *number);
        let subject = blocking(move || this.subject(&tenant, &name, number)).await??;
        let Some(subject) = subject else { return Ok(()) };
        let key = (subject.tenant.clone(), subject.revision.artifact);
        match self.load_once(&key, || subject, Keep::No).await? {
            Found::Loaded(_) => Ok(()),
            Found::Module(compiling) => compiling.await.map(drop),
        }
    }

    /// What is left to do for a revision: nothing if it is not live any more, was compiled by a request meanwhile, or another
    /// function has the same native code already.
    fn subject(&self, tenant: &TenantId, name: &FunctionName, number: RevisionNumber) -> Result<Option<Subject>, Fault> {
        let record = self.0.registry.function(tenant, name).map_err(|error| error.fault())?;
        let stale = record.filter(|record| record.live.number == number && self.is_stale(record));
        let Some(subject) = stale.map(Subject::of_record).transpose().map_err(Fault::internal)? else { return Ok(None) };
        let key = self.key(&subject);
        let file = FileId::artifact(tenant, key);
        let _pin = self.0.artifacts.pin([file.clone()]);
        match self.0.artifacts.file_len(&file) {
            Some(bytes) => self.set_artifact(&subject, key, bytes, None).map(|()| None),
            None => Ok(Some(subject)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bounds::Bounds;
    use super::*;
    use crate::artifacts::{Artifacts, Contents, DataDir};
    use crate::config;
    use crate::engine::Engine;
    use crate::engine::build::{Builder, Helper};
    use crate::manifest::Manifest;
    use crate::registry::{NewRevision, Precondition, Registry};
    use crate::telemetry::metrics::Metrics;

    struct Parts {
        templates: Templates,
        registry: Arc<Registry>,
        artifacts: Artifacts,
        _dir: (DataDir, tempfile::TempDir),
    }

    fn parts() -> Parts {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let registry = Arc::new(Registry::open(&dir.registry_path(), dir.format()).unwrap());
        let artifacts = Artifacts::open(&dir, dir.mac_key(None).unwrap(), u64::MAX).unwrap();
        let config = config::Engine { instances_max: 1, ..config::Engine::default() };
        let engine = Engine::new(&config, Arc::new(Metrics::new())).unwrap();
        let builder = Arc::new(Builder::new(Helper::on_thread("/nowhere/hob".into()), config::Build::default()).unwrap());
        let bounds = Bounds { count: 1, bytes: u64::MAX };
        let templates = Templates::new(engine, artifacts.clone(), registry.clone(), builder, bounds);
        Parts { templates, registry, artifacts, _dir: (dir, temp) }
    }

    impl Parts {
        /// Publishes a function whose native code is said to be of another engine. Returns the key that it should have.
        fn publish(&self, name: &str) -> Digest {
            self.publish_of(&TenantId::default(), name)
        }

        fn publish_of(&self, tenant: &TenantId, name: &str) -> Digest {
            let wasm = Digest::of(b"module");
            let new = NewRevision {
                wasm,
                wasm_bytes: 6,
                artifact: Digest::of(b"of another engine"),
                artifact_bytes: 1,
                kind: "handler".into(),
                manifest: Manifest::default(),
                snapshot: None,
                bundle: None,
                notes: vec![],
                signed_version: None,
            };
            self.registry.publish(tenant, &name.parse().unwrap(), new, &Precondition::Any, 1, 1000).unwrap();
            self.templates.artifact_key(tenant, &wasm, None)
        }

        fn artifact(&self, name: &str) -> Digest {
            self.registry.function(&TenantId::default(), &name.parse().unwrap()).unwrap().unwrap().live.artifact
        }
    }

    #[tokio::test]
    async fn nothing_begins_while_a_deploy_is_under_way() {
        let parts = parts();
        let key = parts.publish("a");
        let staged = parts.artifacts.stage_build().native;
        std::fs::write(staged.path(), "code").unwrap();
        let tenant = TenantId::default();
        let _pin = parts.artifacts.pin([FileId::artifact(&tenant, key)]);
        parts.artifacts.put_artifact(&tenant, key, staged, Contents::default()).unwrap();

        let deploying = parts.templates.deploying();
        let templates = parts.templates.clone();
        let refresh = tokio::spawn(async move { templates.refresh(Ranks::new(), || ()).await });
        while parts.templates.0.deploys.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        assert_ne!(parts.artifact("a"), key, "it waits");
        let second = parts.templates.deploying();
        drop(deploying);
        tokio::task::yield_now().await;
        assert!(!refresh.is_finished() && parts.artifact("a") != key, "for all of them");
        drop(second);
        refresh.await.unwrap();
        assert_eq!((parts.artifact("a"), parts.artifacts.engine().is_some()), (key, true));
    }

    #[tokio::test]
    async fn what_was_used_comes_first_then_the_newest_and_what_failed_does_not_come_again() {
        let parts = parts();
        let first = |ranks: &Ranks, except: &HashSet<Which>| {
            let batch = parts.templates.stale(ranks, except).unwrap();
            batch.into_iter().map(|(_, name, _)| name.to_string()).collect::<Vec<_>>()
        };
        let newest = |except: &HashSet<Which>| first(&Ranks::new(), except);
        assert!(newest(&HashSet::new()).is_empty());
        for name in ["b", "c", "a"] {
            parts.publish(name);
            // Times are in milliseconds.
            let now = parts.registry.function(&TenantId::default(), &name.parse().unwrap()).unwrap().unwrap().updated_ms;
            while crate::telemetry::logs::unix_ms() == now {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(newest(&HashSet::new()), ["a", "c", "b"]);
        let failed = HashSet::from([(TenantId::default(), "c".parse().unwrap(), RevisionNumber::FIRST)]);
        assert_eq!(newest(&failed), ["a", "b"]);
        let rank = |name: &str, rank| ((TenantId::default(), name.parse().unwrap()), rank);
        let ranks = Ranks::from([rank("b", 0), rank("gone", 1), rank("c", 2)]);
        assert_eq!(first(&ranks, &HashSet::new()), ["b", "c", "a"]);
        // Those of every tenant, in one order.
        let acme: TenantId = "acme".parse().unwrap();
        parts.registry.put_tenant(&acme, std::collections::BTreeSet::new()).unwrap();
        parts.publish_of(&acme, "d");
        let ranks = Ranks::from([((acme, "d".parse().unwrap()), 1), rank("b", 0)]);
        assert_eq!(first(&ranks, &HashSet::new()), ["b", "d", "a", "c"]);
    }
}
