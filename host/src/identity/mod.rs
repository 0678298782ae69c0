//! Identity: whose a request is, by its token or by its host.
//!
//! Owns the tokens and tenants of the registry as they are in memory, where every request finds them without a lock, and the order in which
//! both change. Knows no route and no connection. Invariants: a token that was removed, and one that expired, is worth nothing from the next
//! request on; what is presented is hashed and looked up in the same way whatever it is, so that an answer tells nothing about other tokens.

mod failures;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;

use self::failures::Failures;
use crate::fault::{Code, Fault};
use crate::host::{HostName, RequestHost};
use crate::id::{Digest, KeyName, TenantId, TokenName};
use crate::meter::Tenants;
use crate::quota::Quotas;
use crate::registry::{PublishError, QuotaChanges, Registry, RegistryError, TenantError, TenantRecord, TokenRecord};
use crate::signing::PublicKey;
use crate::token::{Scope, Scopes, TokenText};

pub use self::failures::{ADDRESSES_MAX, FAILURES_MAX, FAILURES_TIME};

/// How exactly it is known when a token was used last.
const USED_STEP_MS: u64 = 60_000;

/// A token as requests find it.
#[derive(Debug)]
pub struct Token {
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub name: TokenName,
    /// What it allows.
    pub scopes: Scopes,
    /// When it was made.
    pub created_ms: u64,
    /// From when on it is worth nothing.
    pub expires_ms: Option<u64>,
    hash: Digest,
    used_ms: AtomicU64,
}

impl Token {
    /// When it was used last since the node started, a minute more or less.
    #[must_use]
    pub fn used_ms(&self) -> Option<u64> {
        Some(self.used_ms.load(Ordering::Relaxed)).filter(|used| *used > 0)
    }

    fn touch(&self, now_ms: u64) {
        // Read first: a line that nobody writes stays in every core's cache.
        if now_ms.saturating_sub(self.used_ms.load(Ordering::Relaxed)) >= USED_STEP_MS {
            self.used_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    fn is_over(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires| now_ms >= expires)
    }
}

type Tokens = HashMap<Digest, Arc<Token>>;

/// Where requests for which host go.
#[derive(Debug, Default)]
struct Hosts {
    declared: HashMap<HostName, TenantId>,
    /// All of them, for the hosts below the base domain.
    tenants: BTreeSet<TenantId>,
}

/// Who may do something on this node, and whose hosts are whose.
#[derive(Debug)]
pub struct Identity {
    registry: Arc<Registry>,
    tokens: ArcSwap<Tokens>,
    hosts: ArcSwap<Hosts>,
    /// `.BASE`: `TENANT.BASE` is a host of that tenant.
    base: Option<String>,
    nobody: TenantId,
    /// Held over every change of the registry and until the maps have it, so that both change in the same order.
    changes: Mutex<()>,
    failures: Mutex<Failures>,
    meters: Arc<Tenants>,
}

/// What somebody presented.
#[derive(Debug)]
pub enum Presented {
    /// No token.
    Nothing,
    /// One of this node's.
    Token(Arc<Token>),
    /// Something that is no token of this node's, or expired.
    Unknown,
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Identity {
    /// Reads who is known. `base`: the domain below which tenants have hosts of their own.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn open(registry: Arc<Registry>, base: Option<&HostName>) -> Result<Self, RegistryError> {
        Self::open_with(registry, base, Quotas::default())
    }

    /// The same where tenants without quotas of their own have these.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn open_with(registry: Arc<Registry>, base: Option<&HostName>, defaults: Quotas) -> Result<Self, RegistryError> {
        let identity = Self {
            registry,
            tokens: ArcSwap::default(),
            hosts: ArcSwap::default(),
            base: base.map(|base| format!(".{base}")),
            nobody: TenantId::nobody(),
            changes: Mutex::new(()),
            failures: Mutex::default(),
            meters: Arc::new(Tenants::new(defaults)),
        };
        identity.load_tokens()?;
        identity.load_hosts()?;
        Ok(identity)
    }

    fn load_tokens(&self) -> Result<(), RegistryError> {
        let before = self.tokens.load();
        let made = |record: TokenRecord| {
            let TokenRecord { tenant, name, hash, scopes, created_ms, expires_ms } = record;
            // A token keeps what is known of its use.
            let kept = before.get(&hash).cloned();
            let new = || Arc::new(Token { tenant, name, scopes, created_ms, expires_ms, hash, used_ms: AtomicU64::new(0) });
            (hash, kept.unwrap_or_else(new))
        };
        let tokens = self.registry.tokens()?.into_iter().map(made).collect();
        self.tokens.store(Arc::new(tokens));
        Ok(())
    }

    fn load_hosts(&self) -> Result<(), RegistryError> {
        let mut hosts = Hosts::default();
        for TenantRecord { name, hosts: declared, quotas, .. } in self.registry.tenants()? {
            self.meters.set(&name, &quotas);
            for host in declared {
                match self.holder(&host).filter(|holder| *holder != name) {
                    // Declared before the node had this base domain.
                    Some(holder) => {
                        tracing::warn!(%host, tenant = %name, %holder, "a declared host is another tenant's below the base domain")
                    }
                    None => _ = hosts.declared.insert(host, name.clone()),
                }
            }
            hosts.tenants.insert(name);
        }
        self.hosts.store(Arc::new(hosts));
        Ok(())
    }

    /// Whose a host is below the base domain, whether that tenant exists or not.
    fn holder(&self, host: &HostName) -> Option<TenantId> {
        host.as_str().strip_suffix(self.base.as_deref()?)?.parse().ok()
    }

    /// Every change leaves the maps whole.
    fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the node has no token yet, so that whoever reaches the control port is its operator.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.tokens.load().is_empty()
    }

    /// What a request presents.
    ///
    /// # Cost
    /// A hash of what is presented and a look-up, the same whether it is a token or not; no lock and no allocation.
    #[must_use]
    pub fn presented(&self, headers: &HeaderMap) -> Presented {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), more) = (values.next(), values.next()) else { return Presented::Nothing };
        let hash = Digest::of(bearer(value.as_bytes()));
        let now = now_ms();
        match self.tokens.load().get(&hash) {
            // Of two, nobody can say which is meant.
            Some(token) if more.is_none() && !token.is_over(now) => {
                token.touch(now);
                Presented::Token(token.clone())
            }
            _ => Presented::Unknown,
        }
    }

    /// Whether a token that was presented is still worth what it was: neither removed nor expired. What it allows never changes.
    ///
    /// # Cost
    /// A look-up; no lock and no allocation.
    #[must_use]
    pub fn is_good(&self, token: &Token) -> bool {
        self.tokens.load().contains_key(&token.hash) && !token.is_over(now_ms())
    }

    /// Whether a request may invoke a function of `tenant` that asks for a token.
    ///
    /// # Errors
    /// `unauthenticated`, the same for no token, an unknown one and one of another tenant; `forbidden` for one without the scope.
    pub fn may_invoke(&self, headers: &HeaderMap, tenant: &TenantId) -> Result<(), Fault> {
        match self.presented(headers) {
            Presented::Token(token) if token.tenant == *tenant => match token.scopes.allow(Scope::Invoke) {
                true => Ok(()),
                false => Err(missing(Scope::Invoke)),
            },
            _ => {
                let fault = Fault::new(
                    Code::Unauthenticated,
                    "this function asks for a token of its tenant, and there is none that it knows",
                );
                Err(fault.hint("send the header 'authorization: Bearer TOKEN' with a token that has the scope 'invoke'"))
            }
        }
    }

    /// Whose functions a request may reach: those of the tenant that has its host, or nobody's if the host is that of a tenant which does not
    /// exist. `default`: that tenant, in the caller's own copy.
    ///
    /// # Cost
    /// One look-up; no lock and no allocation.
    #[must_use]
    pub fn tenant_of(&self, head: &Parts, default: &TenantId) -> TenantId {
        let hosts = self.hosts.load();
        if hosts.declared.is_empty() && self.base.is_none() {
            return default.clone();
        }
        let host = RequestHost::of(head);
        let host = host.as_str();
        if let Some(tenant) = hosts.declared.get(host) {
            return tenant.clone();
        }
        match self.base.as_deref().and_then(|base| host.strip_suffix(base)) {
            Some(name) => hosts.tenants.get(name).unwrap_or(&self.nobody).clone(),
            None => default.clone(),
        }
    }

    /// A host whose requests reach a tenant's functions: the first that it declared, else the one below the base domain. Of `default`, which
    /// any other host reaches, there is none to name.
    #[must_use]
    pub fn host_of(&self, tenant: &TenantId) -> Option<String> {
        let hosts = self.hosts.load();
        let declared = hosts.declared.iter().filter(|(_, holder)| *holder == tenant).map(|(host, _)| host.as_str()).min();
        let below = || self.base.as_deref().map(|base| format!("{tenant}{base}"));
        declared.map(String::from).or_else(below).filter(|_| !tenant.is_default())
    }

    /// Notes that an address presented something unknown.
    ///
    /// # Errors
    /// `too-many-failures` once it has done so more than [`FAILURES_MAX`] times within [`FAILURES_TIME`].
    pub fn failed(&self, address: IpAddr) -> Result<(), Fault> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.note(address, Instant::now()).map_err(too_many)
    }

    /// Makes a token. `expires`: from now on.
    ///
    /// # Errors
    /// As [`Registry::add_token`]; `internal` when the system gives no random numbers.
    pub fn add_token(
        &self,
        tenant: TenantId,
        name: TokenName,
        scopes: Scopes,
        expires: Option<Duration>,
    ) -> Result<(TokenText, TokenRecord), Fault> {
        let text = TokenText::random().map_err(Fault::internal)?;
        let created_ms = now_ms();
        let expires_ms = expires.map(|time| created_ms.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)));
        let record = TokenRecord { tenant, name, hash: text.hash(), scopes, created_ms, expires_ms };
        let _turn = self.change();
        self.registry.add_token(&record).map_err(|error| error.fault())?;
        self.load_tokens().map_err(|error| error.fault())?;
        Ok((text, record))
    }

    /// Removes a token.
    ///
    /// # Errors
    /// As [`Registry::remove_token`].
    pub fn remove_token(&self, tenant: &TenantId, name: &TokenName) -> Result<(), Fault> {
        let _turn = self.change();
        self.registry.remove_token(tenant, name).map_err(|error| error.fault())?;
        self.load_tokens().map_err(|error| error.fault())
    }

    /// The tokens of a tenant, by name.
    #[must_use]
    pub fn tokens(&self, tenant: &TenantId) -> Vec<Arc<Token>> {
        let mut tokens: Vec<_> = self.tokens.load().values().filter(|token| token.tenant == *tenant).cloned().collect();
        tokens.sort_by(|a, b| a.name.cmp(&b.name));
        tokens
    }

    /// Whether there is such a tenant.
    #[must_use]
    pub fn has_tenant(&self, tenant: &TenantId) -> bool {
        self.hosts.load().tenants.contains(tenant)
    }

    /// The names of all tenants.
    #[must_use]
    pub fn known(&self) -> Vec<TenantId> {
        self.hosts.load().tenants.iter().cloned().collect()
    }

    /// All tenants, by name.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn tenants(&self) -> Result<Vec<TenantRecord>, RegistryError> {
        self.registry.tenants()
    }

    /// One tenant.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn tenant(&self, name: &TenantId) -> Result<Option<TenantRecord>, RegistryError> {
        self.registry.tenant(name)
    }

    /// Makes a tenant, or changes its hosts. Returns it, and whether it is new.
    ///
    /// # Errors
    /// As [`Registry::put_tenant`]; [`TenantError::HostBelowBase`] for the host that another tenant has below the base domain, also one that
    /// does not exist yet.
    pub fn put_tenant(&self, name: &TenantId, hosts: BTreeSet<HostName>) -> Result<(TenantRecord, bool), PublishError> {
        let _turn = self.change();
        for host in &hosts {
            if let Some(holder) = self.holder(host).filter(|holder| holder != name) {
                return Err(TenantError::HostBelowBase { host: host.clone(), holder }.into());
            }
        }
        let done = self.registry.put_tenant(name, hosts)?;
        self.load_hosts()?;
        Ok(done)
    }

    /// Changes quotas of a tenant, which are in force when this returns.
    ///
    /// # Errors
    /// As [`Registry::set_quotas`].
    pub fn set_quotas(&self, name: &TenantId, changes: &QuotaChanges) -> Result<TenantRecord, PublishError> {
        let _turn = self.change();
        let record = self.registry.set_quotas(name, changes)?;
        self.meters.set(name, &record.quotas);
        Ok(record)
    }

    /// What tenants use and may use.
    #[must_use]
    pub fn meters(&self) -> &Arc<Tenants> {
        &self.meters
    }

    /// Removes a tenant with its tokens and keys.
    ///
    /// # Errors
    /// As [`Registry::remove_tenant`].
    pub fn remove_tenant(&self, name: &TenantId) -> Result<(), PublishError> {
        let _turn = self.change();
        self.registry.remove_tenant(name)?;
        self.meters.forget(name);
        self.load_hosts()?;
        Ok(self.load_tokens()?)
    }

    /// Adds a key that deploys of a tenant may be signed with.
    ///
    /// # Errors
    /// As [`Registry::add_key`].
    pub fn add_key(&self, tenant: &TenantId, name: &KeyName, key: PublicKey) -> Result<TenantRecord, PublishError> {
        self.registry.add_key(tenant, name, key)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Registry::remove_key`].
    pub fn remove_key(&self, tenant: &TenantId, name: &KeyName) -> Result<(), PublishError> {
        self.registry.remove_key(tenant, name)
    }
}

/// What follows `Bearer `; all of it where there is no such word, which is no token either.
fn bearer(value: &[u8]) -> &[u8] {
    const WORD: &[u8] = b"bearer ";
    match value.split_at_checked(WORD.len()) {
        Some((word, rest)) if word.eq_ignore_ascii_case(WORD) => rest.trim_ascii(),
        _ => value,
    }
}

/// The fault for a token that does not go far enough.
#[must_use]
pub fn missing(scope: Scope) -> Fault {
    Fault::new(Code::Forbidden, format!("the token has not the scope '{scope}', which this needs"))
        .hint(format!("use another token; an admin makes one with: hob token new NAME --scope {scope}"))
}

fn too_many(left: Duration) -> Fault {
    let detail = format!("more than {FAILURES_MAX} unknown tokens came from this address within a minute");
    Fault::new(Code::TooManyFailures, detail).hint("look at which token is sent").retry_after(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(dir: &tempfile::TempDir, base: Option<&str>) -> Identity {
        let registry = Arc::new(Registry::open(&dir.path().join("registry.redb"), 4).unwrap());
        Identity::open(registry, base.map(|base| base.parse().unwrap()).as_ref()).unwrap()
    }

    fn scopes(list: &[Scope]) -> Scopes {
        list.iter().copied().collect()
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
    }

    #[test]
    fn a_token_is_known_until_it_is_removed_or_expires() {
        let dir = tempfile::tempdir().unwrap();
        let identity = identity(&dir, None);
        assert!(identity.is_open());
        let tenant = TenantId::default();
        let add =
            |name: &str, scope, expires| identity.add_token(tenant.clone(), name.parse().unwrap(), scopes(&[scope]), expires);
        for wrong in [add("a", Scope::Deploy, None), add("a", Scope::Admin, Some(Duration::from_secs(60)))] {
            assert_eq!(wrong.unwrap_err().code, Code::Conflict, "the first must be an admin's for good");
        }
        let (text, _) = add("a", Scope::Admin, None).unwrap();
        assert!(!identity.is_open());
        let text = text.reveal();
        let known = |values: &[&str]| matches!(identity.presented(&headers(values)), Presented::Token(token) if token.name.as_str() == "a");
        assert!(known(&[&format!("Bearer {text}")]) && known(&[&format!("bearer  {text} ")]));
        for wrong in [
            &format!("Bearer {text}0")[..],
            &format!("Basic {text}"),
            "Bearer ",
            "Bearer",
            "",
            &format!("Bearer {}", &text[..75]),
        ] {
            assert!(matches!(identity.presented(&headers(&[wrong])), Presented::Unknown), "{wrong}");
        }
        let twice = format!("Bearer {text}");
        assert!(matches!(identity.presented(&headers(&[&twice, &twice])), Presented::Unknown));
        assert!(matches!(identity.presented(&HeaderMap::new()), Presented::Nothing));
        assert!(identity.tokens(&tenant)[0].used_ms().is_some());
        let (spent, _) = add("b", Scope::Read, Some(Duration::ZERO)).unwrap();
        assert!(matches!(identity.presented(&headers(&[&format!("Bearer {}", spent.reveal())])), Presented::Unknown));
        let remove = |name: &str| identity.remove_token(&tenant, &name.parse().unwrap()).map_err(|fault| fault.code);
        assert_eq!((remove("a"), remove("c")), (Err(Code::Conflict), Err(Code::NotFound)));
        add("c", Scope::Admin, None).unwrap();
        assert_eq!(remove("a"), Ok(()));
        assert!(!known(&[&format!("Bearer {text}")]));
        assert_eq!(add("c", Scope::Read, None).unwrap_err().code, Code::Conflict);
    }

    #[test]
    fn a_base_domain_takes_hosts_that_were_declared_before() {
        let dir = tempfile::tempdir().unwrap();
        let name = |text: &str| text.parse::<TenantId>().unwrap();
        let hosts = ["acme.hob.example", "later.hob.example", "other.hob.example"].map(|host| host.parse().unwrap());
        let before = identity(&dir, None);
        before.put_tenant(&name("acme"), BTreeSet::new()).unwrap();
        before.put_tenant(&name("other"), hosts.into()).unwrap();
        let of = |identity: &Identity, host: &str| {
            let head = http::Request::builder().uri("/").header("host", host).body(()).unwrap().into_parts().0;
            identity.tenant_of(&head, &TenantId::default()).to_string()
        };
        assert_eq!(of(&before, "acme.hob.example"), "other");
        drop(before);
        let after = identity(&dir, Some("hob.example"));
        for (host, tenant) in [("acme.hob.example", "acme"), ("later.hob.example", "-"), ("other.hob.example", "other")] {
            assert_eq!(of(&after, host), tenant, "{host}");
        }
    }

    #[test]
    fn hosts_lead_to_tenants() {
        let dir = tempfile::tempdir().unwrap();
        let identity = identity(&dir, Some("hob.example"));
        let name = |text: &str| text.parse::<TenantId>().unwrap();
        let hosts = |list: &[&str]| list.iter().map(|host| host.parse().unwrap()).collect::<BTreeSet<HostName>>();
        identity.put_tenant(&name("acme"), hosts(&["acme.example", "xn--bcher-kva.example"])).unwrap();
        let taken = identity.put_tenant(&name("other"), hosts(&["ACME.example."])).unwrap_err();
        assert_eq!(taken.fault().code, Code::Conflict);
        for (host, conflicts) in
            [("acme.hob.example", true), ("later.hob.example", true), ("other.hob.example", false), ("a.b.hob.example", false)]
        {
            let put = identity.put_tenant(&name("other"), hosts(&[host]));
            let is_told = |error: PublishError| {
                error.fault().code == Code::Conflict && error.to_string().contains("below the node's base domain")
            };
            assert_eq!(put.is_err_and(is_told), conflicts, "{host}");
        }
        assert_eq!(identity.host_of(&name("other")).unwrap(), "a.b.hob.example");
        assert_eq!(identity.host_of(&name("later")).unwrap(), "later.hob.example");
        assert_eq!(identity.host_of(&TenantId::default()), None);
        identity.put_tenant(&name("other"), hosts(&["other.example"])).unwrap();
        let of = |host: &str| {
            let head = http::Request::builder().uri("/").header("host", host).body(()).unwrap().into_parts().0;
            identity.tenant_of(&head, &TenantId::default()).to_string()
        };
        for (host, tenant) in [
            ("acme.example", "acme"),
            ("ACME.Example.:3000", "acme"),
            ("xn--bcher-kva.example", "acme"),
            ("acme.hob.example", "acme"),
            ("Acme.HOB.example:80", "acme"),
            ("other.hob.example.", "other"),
            ("default.hob.example", "default"),
            ("none.hob.example", "-"),
            ("a.acme.hob.example", "-"),
            (".hob.example", "-"),
            ("hob.example", "default"),
            ("acmehob.example", "default"),
            ("x.acme.example", "default"),
            ("acme.example.evil", "default"),
            ("127.0.0.1:3000", "default"),
            ("", "default"),
        ] {
            assert_eq!(of(host), tenant, "{host}");
        }
        identity.put_tenant(&name("acme"), BTreeSet::new()).unwrap();
        assert_eq!((of("acme.example"), of("acme.hob.example")), ("default".into(), "acme".into()));
        identity.remove_tenant(&name("acme")).unwrap();
        assert_eq!(of("acme.hob.example"), "-");
        assert_eq!(identity.remove_tenant(&TenantId::default()).unwrap_err().fault().code, Code::Conflict);
        assert_eq!(identity.remove_tenant(&name("acme")).unwrap_err().fault().code, Code::NotFound);
    }

    #[test]
    fn what_asks_for_a_token_takes_one_of_its_tenant_with_the_scope() {
        let dir = tempfile::tempdir().unwrap();
        let identity = identity(&dir, None);
        let (default, acme) = (TenantId::default(), "acme".parse::<TenantId>().unwrap());
        identity.put_tenant(&acme, BTreeSet::new()).unwrap();
        let add = |tenant: &TenantId, name: &str, scope| {
            let (text, _) = identity.add_token(tenant.clone(), name.parse().unwrap(), scopes(&[scope]), None).unwrap();
            headers(&[&format!("Bearer {}", text.reveal())])
        };
        let admin = add(&default, "a", Scope::Admin);
        let (invoke, read, foreign) =
            (add(&default, "i", Scope::Invoke), add(&default, "r", Scope::Read), add(&acme, "i", Scope::Invoke));
        let may = |headers: &HeaderMap| identity.may_invoke(headers, &default);
        assert_eq!((may(&admin), may(&invoke)), (Ok(()), Ok(())));
        assert_eq!(may(&read).unwrap_err().code, Code::Forbidden);
        let refused = may(&HeaderMap::new()).unwrap_err();
        assert_eq!(refused.code, Code::Unauthenticated);
        for same in [&foreign, &headers(&["Bearer x"])] {
            assert_eq!(may(same).unwrap_err(), refused);
        }
    }
}
