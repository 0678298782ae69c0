//! Changes: publish, roll back, remove. Each is one durable transaction.
//!
//! Owns the rules (preconditions, routes, numbering, pruning). Knows nothing about files or HTTP, except how a precondition is
//! spelled. Invariant after each commit: every function's live revision exists; a number is never given twice to one function;
//! the tables of routes and triggers hold those of the live revisions and no others, each route under one function; and what `references.rs`
//! counts is right.

use std::sync::PoisonError;

use redb::{ReadableTable, Table, WriteTransaction};

use super::answers::Terms;
use super::error::{PublishError, RegistryError, storage};
use super::record::{FunctionRecord, FunctionRow, NewRevision, Place, Recompiled, Retaken, RevisionRecord, encode};
use super::references::{Counting, Reference};
use super::signed::raise_version;
use super::tenants::check_tenant;
use super::{
    Commit, FUNCTIONS, REVISIONS, ROUTES, Registry, TRIGGERS, answers, now_ms, read_function, read_numbers, read_revision,
};
use crate::crash;
use crate::id::{BucketName, FunctionName, RevisionNumber, TenantId};
use crate::idempotency::Keep;
use crate::manifest::{Manifest, Trigger};
use crate::route::Route;

/// Most functions that one bucket triggers: each of its changes is written down for each of them, by a thread that all share.
pub const TRIGGERED_MAX: usize = 16;

/// What must hold for a change to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Precondition {
    /// Nothing.
    #[default]
    Any,
    /// The function exists and its ETag is among these: the value of `If-Match`, tags with their quotes, separated by commas, or
    /// `*` for any. A weak tag (`W/"…"`) never matches (RFC 9110, 13.1.1).
    Match(String),
    /// The function does not exist: `If-None-Match: *`.
    NoneMatch,
}

impl Precondition {
    /// Whether it holds. `found`: ETag of the live revision, `None` if there is no such function. A change checks again, inside
    /// its transaction; asking before is for not working in vain.
    ///
    /// # Errors
    /// [`PublishError::Precondition`].
    pub fn check(&self, found: Option<String>) -> Result<(), PublishError> {
        let (holds, expected) = match self {
            Self::Any => return Ok(()),
            Self::Match(tags) => {
                let listed = |etag: &String| tags.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag);
                (found.as_ref().is_some_and(listed), tags.as_str())
            }
            Self::NoneMatch => (found.is_none(), "no such function"),
        };
        if holds { Ok(()) } else { Err(PublishError::Precondition { expected: expected.into(), found }) }
    }
}

/// The tables, open for writing.
struct Tables<'t> {
    txn: &'t WriteTransaction,
    functions: Table<'t, (&'static str, &'static str), &'static [u8]>,
    revisions: Table<'t, (&'static str, &'static str, u64), &'static [u8]>,
    routes: Table<'t, (&'static str, &'static str), &'static str>,
    triggers: Table<'t, (&'static str, &'static str, &'static str), ()>,
    counting: Counting<'t>,
}

impl<'t> Tables<'t> {
    fn open(txn: &'t WriteTransaction) -> Result<Self, RegistryError> {
        let doing = "open a table of the registry";
        Ok(Self {
            txn,
            functions: txn.open_table(FUNCTIONS).map_err(storage(doing))?,
            revisions: txn.open_table(REVISIONS).map_err(storage(doing))?,
            routes: txn.open_table(ROUTES).map_err(storage(doing))?,
            triggers: txn.open_table(TRIGGERS).map_err(storage(doing))?,
            counting: Counting::open(txn)?,
        })
    }

    /// The function's row and live revision.
    fn live(&self, tenant: &TenantId, name: &FunctionName) -> Result<Option<(FunctionRow, RevisionRecord)>, RegistryError> {
        let Some(row) = read_function(&self.functions, tenant, name)? else { return Ok(None) };
        let live = read_revision(&self.revisions, tenant, name, row.live)?;
        let place = Place { tenant: tenant.as_str(), name: name.as_str(), number: row.live.0 };
        Ok(Some((row, live.ok_or_else(|| place.damaged("the live revision is missing"))?)))
    }

    fn put_function(&mut self, tenant: &TenantId, name: &FunctionName, row: &FunctionRow) -> Result<(), RegistryError> {
        let place = Place { tenant: tenant.as_str(), name: name.as_str(), number: 0 };
        let bytes = encode(place, row);
        self.functions.insert((place.tenant, place.name), bytes.as_slice()).map_err(storage("write a function"))?;
        Ok(())
    }

    /// Writes a revision, in place of one with its number.
    fn put_revision(&mut self, tenant: &TenantId, name: &FunctionName, record: &RevisionRecord) -> Result<(), RegistryError> {
        let place = Place { tenant: tenant.as_str(), name: name.as_str(), number: record.number.0 };
        // Before the old one is taken back, so that what both need is not released.
        self.counting.add(tenant, record)?;
        self.remove_revision(tenant, name, record.number)?;
        let bytes = encode(place, record);
        let key = (place.tenant, place.name, place.number);
        self.revisions.insert(key, bytes.as_slice()).map_err(storage("write a revision"))?;
        Ok(())
    }

    fn remove_revision(&mut self, tenant: &TenantId, name: &FunctionName, number: RevisionNumber) -> Result<(), RegistryError> {
        let Some(record) = read_revision(&self.revisions, tenant, name, number)? else { return Ok(()) };
        self.counting.remove(tenant, &record)?;
        let key = (tenant.as_str(), name.as_str(), number.0);
        self.revisions.remove(key).map_err(storage("remove a revision"))?;
        Ok(())
    }

    /// Who has a route.
    fn holder(&self, tenant: &TenantId, route: &str) -> Result<Option<FunctionName>, RegistryError> {
        let held = self.routes.get((tenant.as_str(), route)).map_err(storage("read a route"))?;
        held.map(|name| parse_name(name.value())).transpose()
    }

    /// Gives the routes `old` back and takes `new`.
    fn swap_routes(&mut self, tenant: &TenantId, name: &FunctionName, old: &[Route], new: &[Route]) -> Result<(), PublishError> {
        for route in new.iter().map(ToString::to_string) {
            if let Some(holder) = self.holder(tenant, &route)?.filter(|holder| holder != name) {
                return Err(PublishError::RouteTaken { route, holder });
            }
        }
        for route in old.iter().map(ToString::to_string) {
            // Not one that somebody else has, which only a migrated directory can contain.
            if self.holder(tenant, &route)?.as_ref() == Some(name) {
                self.routes.remove((tenant.as_str(), route.as_str())).map_err(storage("remove a route"))?;
            }
        }
        for route in new.iter().map(ToString::to_string) {
            self.routes.insert((tenant.as_str(), route.as_str()), name.as_str()).map_err(storage("write a route"))?;
        }
        Ok(())
    }

    /// Gives back what leads to the function in its manifest `old`, and takes what does in `new`.
    fn swap_ways(
        &mut self,
        tenant: &TenantId,
        name: &FunctionName,
        old: Option<&Manifest>,
        new: Option<&Manifest>,
    ) -> Result<(), PublishError> {
        let routes = |manifest: Option<&Manifest>| manifest.map_or(Vec::new(), |manifest| manifest.route.clone());
        let triggers = |manifest: Option<&Manifest>| manifest.map_or(Vec::new(), |manifest| manifest.trigger.clone());
        self.swap_routes(tenant, name, &routes(old), &routes(new))?;
        self.swap_triggers(tenant, name, &triggers(old), &triggers(new))
    }

    fn swap_triggers(
        &mut self,
        tenant: &TenantId,
        name: &FunctionName,
        old: &[Trigger],
        new: &[Trigger],
    ) -> Result<(), PublishError> {
        let doing = "write what triggers a function";
        for Trigger { bucket, .. } in old {
            self.triggers.remove((tenant.as_str(), bucket.as_str(), name.as_str())).map_err(storage(doing))?;
        }
        for Trigger { bucket, .. } in new {
            self.triggers.insert((tenant.as_str(), bucket.as_str(), name.as_str()), ()).map_err(storage(doing))?;
            if self.triggered(tenant, bucket)? > TRIGGERED_MAX {
                return Err(PublishError::TooManyTriggered { bucket: bucket.clone(), max: TRIGGERED_MAX });
            }
        }
        Ok(())
    }

    /// How many functions a bucket triggers.
    fn triggered(&self, tenant: &TenantId, bucket: &BucketName) -> Result<usize, RegistryError> {
        let doing = "count what a bucket triggers";
        let mut count = 0;
        for entry in self.triggers.range((tenant.as_str(), bucket.as_str(), "")..).map_err(storage(doing))? {
            let (key, _) = entry.map_err(storage(doing))?;
            let (of, from, _) = key.value();
            if (of, from) != (tenant.as_str(), bucket.as_str()) {
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    /// What is live of a function that another revision may be made of, which is counted if it is new.
    fn next_to(
        &mut self,
        tenant: &TenantId,
        name: &FunctionName,
        precondition: &Precondition,
        functions_max: usize,
    ) -> Result<Option<(FunctionRow, RevisionRecord)>, PublishError> {
        let before = self.live(tenant, name)?;
        precondition.check(before.as_ref().map(|(_, live)| live.etag()))?;
        if before.is_none() {
            // It may have been removed while this was built.
            check_tenant(self.txn, tenant)?;
            self.admit(tenant, functions_max)?;
        }
        Ok(before)
    }

    /// Counts one more function, or refuses it.
    fn admit(&mut self, tenant: &TenantId, max: usize) -> Result<(), PublishError> {
        let count = self.counting.functions(tenant)?;
        if count >= max as u64 {
            return Err(PublishError::TooManyFunctions { count, max });
        }
        Ok(self.counting.set_functions(tenant, count + 1)?)
    }

    /// Removes all but the `keep` newest revisions; `live` is the newest.
    fn prune(&mut self, tenant: &TenantId, name: &FunctionName, live: RevisionNumber, keep: usize) -> Result<(), RegistryError> {
        let numbers = read_numbers(&self.revisions, tenant, name)?;
        if numbers.first() != Some(&live) {
            let place = Place { tenant: tenant.as_str(), name: name.as_str(), number: live.0 };
            return Err(place.damaged("a revision is newer than the newest"));
        }
        for number in numbers.into_iter().skip(keep.max(1)) {
            self.remove_revision(tenant, name, number)?;
        }
        Ok(())
    }
}

fn parse_name(text: &str) -> Result<FunctionName, RegistryError> {
    text.parse().map_err(|error| RegistryError::Damaged { what: format!("{error}") })
}

impl Registry {
    /// Makes a change of the tables, and remembers what it released.
    fn change<T>(&self, op: impl FnOnce(&mut Tables<'_>) -> Result<(T, Commit), PublishError>) -> Result<T, PublishError> {
        self.change_once(None, op)
    }

    /// As [`Registry::change`]; with its answer, if that is to be kept.
    fn change_once<T>(
        &self,
        keep: Option<Keep<T>>,
        op: impl FnOnce(&mut Tables<'_>) -> Result<(T, Commit), PublishError>,
    ) -> Result<T, PublishError> {
        let (ticket, make) = keep.map(|keep| (keep.ticket, keep.make)).unzip();
        let (value, released) = self.write(|txn| {
            if let Some(ticket) = &ticket {
                // In the same commit: more than one goes for each that comes, and none costs a flush of its own.
                answers::sweep(txn)?;
                answers::admit(txn, ticket)?;
            }
            let mut tables = Tables::open(txn)?;
            let (value, commit) = op(&mut tables)?;
            let answer = make.and_then(|make| make(&value));
            let commit = match ticket.as_ref().zip(answer) {
                Some((ticket, answer)) => answers::keep(txn, ticket, &answer).map(|()| Commit::Yes)?,
                None => commit,
            };
            Ok(((value, tables.counting.released), commit))
        })?;
        self.released.lock().unwrap_or_else(PoisonError::into_inner).extend(released);
        Ok(value)
    }

    /// What changes have released since this was last called: their files are needed no more, unless a later change refers to
    /// them again. A restart forgets it.
    #[must_use]
    pub fn take_released(&self) -> Vec<(TenantId, Reference)> {
        std::mem::take(&mut *self.released.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes a revision and makes it live, durably, all or nothing. Its number is one more than the highest ever given.
    /// `keep`: revisions that stay, the new one among them; at least 1. With [`Terms`] that keep the answer, the answer is part of it. `functions_max`: functions that the tenant may have.
    ///
    /// # Errors
    /// [`PublishError::Precondition`], [`PublishError::RouteTaken`], [`PublishError::TooManyTriggered`],
    /// [`PublishError::TooManyFunctions`], [`PublishError::NotKept`], and those of storage.
    ///
    /// # Cost
    /// One transaction with two fsyncs; writers take turns. It grows with the logarithm of the number of functions.
    pub fn publish(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        new: NewRevision,
        terms: impl Into<Terms<FunctionRecord>>,
        keep: usize,
        functions_max: usize,
    ) -> Result<FunctionRecord, PublishError> {
        let Terms { precondition, keep: kept } = terms.into();
        let record = self.change_once(kept, |tables| {
            crash::point("registry-begun");
            let before = tables.next_to(tenant, name, &precondition, functions_max)?;
            let now = now_ms();
            let number = before.as_ref().map_or(RevisionNumber::FIRST, |(row, _)| row.last.next());
            let created_ms = before.as_ref().map_or(now, |(row, _)| row.created_ms);
            let NewRevision {
                wasm,
                wasm_bytes,
                artifact,
                artifact_bytes,
                kind,
                manifest,
                snapshot,
                bundle,
                notes,
                signed_version,
            } = new;
            if let Some(version) = signed_version {
                raise_version(tables.txn, tenant, name, version)?;
            }
            let live = RevisionRecord {
                number,
                wasm,
                wasm_bytes,
                artifact,
                artifact_bytes,
                kind,
                manifest,
                created_ms: now,
                snapshot,
                bundle,
                notes,
            };
            let old = before.as_ref().map(|(_, live)| &live.manifest);
            tables.swap_ways(tenant, name, old, Some(&live.manifest))?;
            tables.put_revision(tenant, name, &live)?;
            tables.prune(tenant, name, number, keep)?;
            crash::point("registry-revision-written");
            let row = FunctionRow { live: number, last: number, created_ms, updated_ms: now };
            tables.put_function(tenant, name, &row)?;
            crash::point("registry-live-written");
            let (tenant, name) = (tenant.clone(), name.clone());
            Ok((FunctionRecord { tenant, name, live, created_ms, updated_ms: now }, Commit::Yes))
        })?;
        crash::point("registry-committed");
        Ok(record)
    }

    /// Whether a revision with this manifest could be made live at this moment. Changes nothing.
    ///
    /// # Errors
    /// As [`Registry::publish`].
    ///
    /// # Cost
    /// It takes its turn among those that write, and writes nothing.
    pub fn check_publish(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        manifest: &Manifest,
        precondition: &Precondition,
        functions_max: usize,
    ) -> Result<(), PublishError> {
        self.change(|tables| {
            let before = tables.next_to(tenant, name, precondition, functions_max)?;
            tables.swap_ways(tenant, name, before.as_ref().map(|(_, live)| &live.manifest), Some(manifest))?;
            Ok(((), Commit::No))
        })
    }

    /// Makes a kept revision live again; `to`: its number, `None` for the newest one before the live one. Nothing is pruned, and
    /// the next deploy still gets a new number. Rolling back to the live revision changes nothing.
    ///
    /// # Errors
    /// [`PublishError::NoSuchFunction`], [`PublishError::NoSuchRevision`], [`PublishError::Precondition`],
    /// [`PublishError::RouteTaken`] when a route of the old revision has another holder by now, and those of storage.
    ///
    /// # Cost
    /// As [`Registry::publish`].
    pub fn rollback(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        to: Option<RevisionNumber>,
        terms: impl Into<Terms<FunctionRecord>>,
    ) -> Result<FunctionRecord, PublishError> {
        let Terms { precondition, keep } = terms.into();
        self.change_once(keep, |tables| {
            let before = tables.live(tenant, name)?;
            precondition.check(before.as_ref().map(|(_, live)| live.etag()))?;
            let (row, from) = before.ok_or_else(|| PublishError::NoSuchFunction { name: name.clone() })?;
            let kept = read_numbers(&tables.revisions, tenant, name)?;
            let target = kept.iter().copied().find(|number| to.map_or(*number < row.live, |wanted| *number == wanted));
            let Some(target) = target else {
                return Err(PublishError::NoSuchRevision { name: name.clone(), wanted: to, kept });
            };
            let place = Place { tenant: tenant.as_str(), name: name.as_str(), number: target.0 };
            let live = read_revision(&tables.revisions, tenant, name, target)?;
            let live = live.ok_or_else(|| place.damaged("a revision is missing"))?;
            let commit = if target == row.live { Commit::No } else { Commit::Yes };
            let updated_ms = if target == row.live { row.updated_ms } else { now_ms() };
            tables.swap_ways(tenant, name, Some(&from.manifest), Some(&live.manifest))?;
            let row = FunctionRow { live: target, updated_ms, ..row };
            tables.put_function(tenant, name, &row)?;
            let (tenant, name) = (tenant.clone(), name.clone());
            Ok((FunctionRecord { tenant, name, live, created_ms: row.created_ms, updated_ms }, commit))
        })
    }

    /// Removes a function with all its revisions and routes. Returns whether there was one. Numbering starts at 1 again if the
    /// name is deployed later.
    ///
    /// # Errors
    /// [`PublishError::Precondition`], and those of storage.
    ///
    /// # Cost
    /// As [`Registry::publish`].
    pub fn remove(&self, tenant: &TenantId, name: &FunctionName, terms: impl Into<Terms<bool>>) -> Result<bool, PublishError> {
        let Terms { precondition, keep } = terms.into();
        self.change_once(keep, |tables| {
            let before = tables.live(tenant, name)?;
            precondition.check(before.as_ref().map(|(_, live)| live.etag()))?;
            let Some((_, live)) = before else { return Ok((false, Commit::No)) };
            tables.swap_ways(tenant, name, Some(&live.manifest), None)?;
            for number in read_numbers(&tables.revisions, tenant, name)? {
                tables.remove_revision(tenant, name, number)?;
            }
            tables.functions.remove((tenant.as_str(), name.as_str())).map_err(storage("remove a function"))?;
            let count = tables.counting.functions(tenant)?;
            tables.counting.set_functions(tenant, count.saturating_sub(1))?;
            Ok((true, Commit::Yes))
        })
    }

    /// Records where a revision's native code lies that was compiled anew. Returns whether the revision is still kept, with the snapshot that it was
    /// made for.
    ///
    /// # Errors
    /// Those of storage.
    ///
    /// # Cost
    /// As [`Registry::publish`].
    pub fn set_artifact(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        number: RevisionNumber,
        made: Recompiled,
    ) -> Result<bool, PublishError> {
        let Recompiled { of, artifact: key, artifact_bytes: bytes, note } = made;
        self.change(|tables| {
            let record = read_revision(&tables.revisions, tenant, name, number)?;
            let is_of_it = |record: &RevisionRecord| record.snapshot.as_ref().map(|snapshot| snapshot.key) == of;
            let Some(mut record) = record.filter(is_of_it) else {
                // The file was made for nothing.
                tables.counting.released.push((tenant.clone(), Reference::Artifact(key)));
                return Ok((false, Commit::No));
            };
            let note = note.filter(|note| !record.notes.contains(note));
            if (record.artifact, record.artifact_bytes) == (key, bytes) && note.is_none() {
                return Ok((true, Commit::No));
            }
            record.notes.extend(note);
            (record.artifact, record.artifact_bytes) = (key, bytes);
            tables.put_revision(tenant, name, &record)?;
            Ok((true, Commit::Yes))
        })
    }

    /// Gives the live revision of a function, which must be the one with this number, what was built of it anew. Returns the function as it
    /// is then; `None` if another revision is live by now, and nothing was changed.
    ///
    /// # Errors
    /// Those of storage.
    ///
    /// # Cost
    /// As [`Registry::publish`].
    pub fn retake(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        number: RevisionNumber,
        taken: Retaken,
    ) -> Result<Option<FunctionRecord>, PublishError> {
        self.change(|tables| {
            let Some((row, mut live)) = tables.live(tenant, name)?.filter(|(row, _)| row.live == number) else {
                // The files were made for nothing.
                let snapshot = taken.snapshot.map(|snapshot| Reference::Snapshot(snapshot.key));
                let files = [Reference::Artifact(taken.artifact)].into_iter().chain(snapshot);
                tables.counting.released.extend(files.map(|file| (tenant.clone(), file)));
                return Ok((None, Commit::No));
            };
            Retaken {
                artifact: live.artifact,
                artifact_bytes: live.artifact_bytes,
                snapshot: live.snapshot,
                notes: live.notes,
            } = taken;
            tables.put_revision(tenant, name, &live)?;
            let FunctionRow { created_ms, updated_ms, .. } = row;
            let (tenant, name) = (tenant.clone(), name.clone());
            Ok((Some(FunctionRecord { tenant, name, live, created_ms, updated_ms }), Commit::Yes))
        })
    }
}
