//! Ranges: what the type of a value does not say.
//!
//! Owns the ends of each range, and the sentence for a value outside of it.

use std::path::{Component, Path};

use super::{Build, Config, ConfigError, Engine, Folder, Net, Origin, Process, Secrets};

/// Most `[[origin]]`.
const ORIGINS_MAX: usize = 64;
/// Most `[[folder]]`.
const FOLDERS_MAX: usize = 64;

pub(super) fn range(good: bool, key: &'static str, found: String, expected: &'static str) -> Result<(), ConfigError> {
    if good { Ok(()) } else { Err(ConfigError::Range { key, found, expected }) }
}

impl Net {
    fn check_tls(&self) -> Result<(), ConfigError> {
        let other = if self.tls_cert.is_some() { "net.tls_key" } else { "net.tls_cert" };
        range(
            self.tls_cert.is_some() == self.tls_key.is_some(),
            other,
            "missing".into(),
            "a file, because the other one is named",
        )
    }
}

impl Engine {
    fn check(&self) -> Result<(), ConfigError> {
        range(self.threads <= 1024, "engine.threads", self.threads.to_string(), "at most 1024")?;
        range((1..=10_000).contains(&self.instances_max), "engine.instances_max", self.instances_max.to_string(), "1 to 10000")?;
        range(self.memory_max.is_none_or(|most| most.0 > 0), "engine.memory_max", "0".into(), "more than 0")?;
        range(self.templates_max > 0, "engine.templates_max", "0".into(), "1 or more")?;
        let large = self.large_instances_max;
        range(large <= 10_000, "engine.large_instances_max", large.to_string(), "at most 10000")?;
        let bytes = self.templates_bytes_max.0;
        range(bytes >= 1 << 20, "engine.templates_bytes_max", bytes.to_string(), "1MiB or more")?;
        range(self.functions_hot_max > 0, "engine.functions_hot_max", "0".into(), "1 or more")?;
        Ok(())
    }
}

impl Build {
    fn check(&self) -> Result<(), ConfigError> {
        range(self.cpu.0.as_secs() >= 1, "build.cpu", format!("{:?}", self.cpu.0), "1s or more")?;
        range(self.wall.0.as_secs() >= 1, "build.wall", format!("{:?}", self.wall.0), "1s or more")?;
        range(self.queue <= 10_000, "build.queue", self.queue.to_string(), "at most 10000")?;
        range(self.memory.0 >= 64 << 20, "build.memory", self.memory.0.to_string(), "64MiB or more")?;
        let max = self.memory_max.unwrap_or(self.memory);
        range(
            max >= self.memory,
            "build.memory_max",
            max.0.to_string(),
            "build.memory or more: raise it, lower build.memory, or leave it out for half of the machine's memory",
        )
    }
}

impl Origin {
    fn check(&self) -> Result<(), ConfigError> {
        if let Some(endpoint) = &self.endpoint {
            let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
            let is_good = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']));
            range(is_good, "origin.endpoint", format!("'{endpoint}'"), "http://HOST:PORT or https://HOST, and nothing after it")?;
        }
        range(!self.region.is_empty(), "origin.region", "empty".into(), "a name such as us-east-1")?;
        for (key, time) in [
            ("origin.connect_timeout", self.connect_timeout),
            ("origin.response_timeout", self.response_timeout),
            ("origin.idle_timeout", self.idle_timeout),
        ] {
            range(!time.0.is_zero(), key, "0".into(), "more than no time")?;
        }
        Ok(())
    }
}

fn origins(origins: &[Origin]) -> Result<(), ConfigError> {
    range(origins.len() <= ORIGINS_MAX, "origin", format!("there {} times", origins.len()), "at most 64 of them")?;
    for (place, origin) in origins.iter().enumerate() {
        let is_new = origins[..place].iter().all(|other| other.url != origin.url);
        range(is_new, "origin.url", format!("'{}' twice", origin.url), "each once")?;
        origin.check()?;
    }
    Ok(())
}

/// Folders must not lie in each other: a guest that may write to the outer one could put a link in the place of the inner one. Nor
/// may the node's own data be among them.
fn folders(folders: &[Folder], data: Option<&Path>) -> Result<(), ConfigError> {
    let overlap = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
    range(folders.len() <= FOLDERS_MAX, "folder", format!("there {} times", folders.len()), "at most 64 of them")?;
    for (place, Folder { path, .. }) in folders.iter().enumerate() {
        let shown = || format!("'{}'", path.display());
        let mut parts = path.components();
        let is_good = parts.next() == Some(Component::RootDir) && parts.clone().next().is_some();
        let is_plain = is_good && parts.all(|part| matches!(part, Component::Normal(_)));
        range(is_plain, "folder.path", shown(), "an absolute path without '..', and not '/'")?;
        let is_alone = folders[..place].iter().all(|other| !overlap(path, &other.path));
        range(is_alone, "folder.path", shown(), "folders of which none lies in another")?;
        range(data.is_none_or(|data| !overlap(path, data)), "folder.path", shown(), "a folder apart from data.dir")?;
    }
    Ok(())
}

impl Secrets {
    /// No function may be granted the folder as one of files, and the node writes nothing there.
    fn check(&self, folders: &[Folder], data: Option<&Path>) -> Result<(), ConfigError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let shown = || format!("'{}'", dir.display());
        let is_plain = dir.is_absolute() && dir.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        range(is_plain, "secrets.dir", shown(), "an absolute path without '..'")?;
        let overlaps = |other: &Path| dir.starts_with(other) || other.starts_with(dir);
        let is_apart = folders.iter().all(|folder| !overlaps(&folder.path)) && data.is_none_or(|data| !overlaps(data));
        range(is_apart, "secrets.dir", shown(), "a folder apart from data.dir and from every [[folder]]")
    }
}

impl Process {
    /// A relative path would be another one after a start from another folder.
    fn check(&self) -> Result<(), ConfigError> {
        for (key, paths) in [("process.read", &self.read), ("process.write", &self.write)] {
            for path in paths {
                range(path.is_absolute(), key, format!("'{}'", path.display()), "absolute paths")?;
            }
        }
        Ok(())
    }
}

impl Config {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`ConfigError::Range`] for the first value outside of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let net = &self.net;
        range(
            net.control.ip().is_loopback() || net.tls().is_some(),
            "net.control",
            net.control.to_string(),
            "a loopback address, or a certificate: tokens would cross the network in the clear; add --tls-cert FILE --tls-key FILE, or use --control 127.0.0.1:3900 and a tunnel from elsewhere",
        )?;
        range(net.connections_max > 0, "net.connections_max", "0".into(), "1 or more")?;
        range(net.control_connections_max > 0, "net.control_connections_max", "0".into(), "1 or more")?;
        range((1..=1024).contains(&net.headers_max), "net.headers_max", net.headers_max.to_string(), "1 to 1024")?;
        range(
            (8 << 10..=1 << 20).contains(&net.head_bytes_max.0),
            "net.head_bytes_max",
            net.head_bytes_max.0.to_string(),
            "8KiB to 1MiB",
        )?;
        range(
            (1..=net.head_bytes_max.0).contains(&net.uri_bytes_max.0),
            "net.uri_bytes_max",
            net.uri_bytes_max.0.to_string(),
            "1 to net.head_bytes_max",
        )?;
        net.check_tls()?;
        for (key, time) in [
            ("net.header_timeout", net.header_timeout),
            ("net.handshake_timeout", net.handshake_timeout),
            ("net.keepalive_timeout", net.keepalive_timeout),
            ("net.body_idle_timeout", net.body_idle_timeout),
            ("net.write_idle_timeout", net.write_idle_timeout),
            ("data.upload_timeout", self.data.upload_timeout),
            ("data.answers_time", self.data.answers_time),
            ("engine.ready_idle", self.engine.ready_idle),
        ] {
            range(!time.0.is_zero(), key, "0".into(), "more than no time")?;
        }
        self.engine.check()?;
        origins(&self.origin)?;
        folders(&self.folder, self.data.dir.as_deref())?;
        self.egress.check()?;
        self.secrets.check(&self.folder, self.data.dir.as_deref())?;
        self.process.check()?;
        let requests = self.data.origin_requests_max;
        range((1..=1024).contains(&requests), "data.origin_requests_max", requests.to_string(), "1 to 1024")?;
        range(self.data.functions_max > 0, "data.functions_max", "0".into(), "1 or more")?;
        let pages = self.data.page_cache_bytes.0;
        range(pages >= 1 << 20, "data.page_cache_bytes", pages.to_string(), "1MiB or more")?;
        range(
            self.logs.function_bytes.0 <= self.logs.total_bytes.0,
            "logs.function_bytes",
            self.logs.function_bytes.0.to_string(),
            "at most logs.total_bytes",
        )?;
        range(self.data.events_max > 0, "data.events_max", "0".into(), "1 or more")?;
        self.build.check()?;
        range(
            (1..=1000).contains(&self.data.revisions_max),
            "data.revisions_max",
            self.data.revisions_max.to_string(),
            "1 to 1000",
        )?;
        let bundle = self.data.bundle_bytes_max.0;
        range(bundle <= 1 << 30, "data.bundle_bytes_max", bundle.to_string(), "at most 1GiB")?;
        range(
            (1024..=1 << 30).contains(&self.data.upload_bytes_max.0),
            "data.upload_bytes_max",
            self.data.upload_bytes_max.0.to_string(),
            "1KiB to 1GiB",
        )
    }
}
