//! `hob deploy`.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use indicatif::ProgressBar;

use super::client::{Client, Deployed, Upload};
use super::failure::{Exit, next};
use super::invoke::Exactly;
use super::output::{self, Format};
use super::pack::{Packed, pack};
use super::project::Project;
use super::text::{bytes, clean, table};
use super::{Ctx, Failure, SERVER, key};
use crate::config::Net;
use crate::engine::build::check_magic;
use crate::id::{Digest, FunctionName, TenantId};
use crate::manifest::FILE_NAME;
use crate::signing::{Message, SecretKey, Signed};
use crate::telemetry::logs::unix_ms;

/// Arguments of `hob deploy`.
#[derive(Debug, Args)]
pub(super) struct Deploy {
    /// Folder with the function's hob.toml, or a Wasm file
    #[arg(default_value = ".", value_name = "DIR|FILE.wasm")]
    path: PathBuf,
    /// Name to deploy under [default: the manifest's, else the file's]
    #[arg(long)]
    name: Option<FunctionName>,
    /// Deploy the Wasm file as it lies there
    #[arg(long)]
    no_build: bool,
    /// Deploy only over the revision with this entity tag (hob inspect shows it)
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
    /// Sign it with the secret key in this file (hob key new makes one)
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// Sign it as this version, which must be higher than that of every deploy before [default: the time, in milliseconds since 1970]
    #[arg(long, value_name = "N", requires = "sign_key")]
    signed_version: Option<u64>,
}

impl Deploy {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let client = ctx.client()?;
        let package = if self.path.is_file() && self.path.file_name().is_some_and(|name| name != FILE_NAME) {
            Package::of_file(&self.path, self.name)?
        } else {
            let project = Project::load(&self.path)?;
            let wasm = if self.no_build { project.wasm()? } else { project.build()? };
            Package::of_project(&project, wasm.path, self.name)?
        };
        let signed = match &self.sign_key {
            Some(file) => Some(package.sign(&key::read(file)?, ctx.tenant.as_ref(), self.signed_version)?),
            None => None,
        };
        let deployed = package.deploy_signed(&client, self.if_match.as_deref().map(quoted), signed)?;
        if ctx.format == Format::Json {
            return Ok(output::json(&deployed.info)?);
        }
        output::raw(describe(&deployed, &ctx.server).as_bytes())?;
        Ok(())
    }
}

/// An entity tag with its quotes, which nobody types.
fn quoted(tag: &str) -> String {
    if tag == "*" || tag.contains('"') { tag.into() } else { format!("\"{tag}\"") }
}

fn describe(deployed: &Deployed, server: &str) -> String {
    let info = &deployed.info;
    // Where the data port is, only the daemon knows; with the usual control port it is most likely the usual one too.
    let usual = || (server.trim_end_matches('/') == SERVER).then(|| Net::default().addr.to_string());
    // Both ports speak the same.
    let scheme = if server.starts_with("https:") { "https" } else { "http" };
    let addr = deployed.data_addr.clone().or_else(usual).map(|addr| match deployed.data_host.as_deref() {
        None => addr,
        Some(host) => format!("{host}:{}", addr.rsplit(':').next().unwrap_or_default()),
    });
    let base = addr.map(|addr| format!("{scheme}://{addr}")).unwrap_or_default();
    let answers_at = match deployed.data_host.as_deref() {
        Some("") => "no address yet: the tenant has no host; next: hob tenant new --help".into(),
        _ => clean(&format!("{base}{}/", info.path)),
    };
    let mut rows = vec![
        vec!["deployed".into(), format!("{} revision {}", clean(&info.name), info.revision)],
        vec!["kind".into(), clean(&info.kind)],
        vec!["digest".into(), clean(&info.digest)],
        vec!["size".into(), format!("{}, {} of native code", bytes(info.wasm_bytes), bytes(info.artifact_bytes))],
        vec!["answers at".into(), answers_at],
    ];
    rows.extend(info.routes.iter().map(|route| vec!["route".into(), clean(route)]));
    rows.extend(info.notes.iter().map(|note| vec!["note".into(), clean(note)]));
    table(&rows)
}

/// What a deploy sends.
#[derive(Debug)]
pub(super) struct Package {
    name: FunctionName,
    manifest: Option<String>,
    /// The folders that the manifest grants and that lie beside it.
    files: Option<Packed>,
    wasm: PathBuf,
}

impl Package {
    /// A Wasm file without a manifest.
    pub(super) fn of_file(path: &Path, name: Option<FunctionName>) -> Result<Self, Failure> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase().replace(['_', '.', ' '], "-");
        let name = match name {
            Some(name) => name,
            None => stem
                .parse()
                .context("the file's name gives the function no name")
                .map_err(next(format!("hob deploy --name NAME {}", path.display())))?,
        };
        Ok(Self { name, manifest: None, files: None, wasm: path.to_owned() })
    }

    /// A project's manifest and `wasm`, under the manifest's name or another.
    pub(super) fn of_project(project: &Project, wasm: PathBuf, name: Option<FunctionName>) -> Result<Self, Failure> {
        let own = project.manifest.name.clone();
        let manifest = match (&name, &own) {
            (Some(name), Some(own)) if name != own => rename(&project.text, name)?,
            _ => project.text.clone(),
        };
        let Some(name) = name.or(own) else {
            let failure = Failure::new(Exit::Failure, "the function has no name: add name = \"NAME\" to hob.toml");
            return Err(failure.next("hob deploy --name NAME"));
        };
        Ok(Self { name, manifest: Some(manifest), files: pack(project)?, wasm })
    }

    /// The function's name.
    pub(super) fn name(&self) -> &FunctionName {
        &self.name
    }

    /// Signs it for a tenant, as a version.
    fn sign(&self, key: &SecretKey, tenant: Option<&TenantId>, version: Option<u64>) -> Result<Signed, Failure> {
        let shown = self.wasm.display();
        let wasm = std::fs::read(&self.wasm).with_context(|| format!("cannot read '{shown}'"))?;
        let tenant = tenant.cloned().unwrap_or_default();
        let version = version.unwrap_or_else(unix_ms);
        let manifest = Digest::of(self.manifest.as_deref().unwrap_or_default().as_bytes());
        let files = match &self.files {
            None => Digest::of(b""),
            Some(packed) => {
                let mut file = &packed.file;
                let digest = file.rewind().and_then(|()| Digest::of_reader(file));
                digest.context("cannot read what was packed")?
            }
        };
        let message = Message { tenant: &tenant, function: &self.name, version, wasm: Digest::of(&wasm), manifest, files };
        Ok(Signed { version, signature: key.sign(&message) })
    }

    /// Uploads, with a bar on a terminal, and waits for the build.
    pub(super) fn deploy(&self, client: &Client, if_match: Option<String>) -> Result<Deployed, Failure> {
        self.deploy_signed(client, if_match, None)
    }

    /// As [`Package::deploy`], with a signature.
    fn deploy_signed(&self, client: &Client, if_match: Option<String>, signed: Option<Signed>) -> Result<Deployed, Failure> {
        let shown = self.wasm.display();
        let mut file = File::open(&self.wasm).with_context(|| format!("cannot open '{shown}'"))?;
        let len = file.metadata().with_context(|| format!("cannot look at '{shown}'"))?.len();
        check(&mut file).map_err(|failure| failure.context(format!("'{shown}' cannot be deployed")).next("hob build"))?;
        let has_files = self.files.is_some();
        let framing = self.manifest.as_deref().map(|manifest| Framing::new(manifest, has_files)).transpose()?.unwrap_or_default();
        // A deploy may be made again: its archive is read from the beginning each time.
        let archive = self.files.as_ref().map(|packed| (&packed.file, packed.len));
        let (archive, archive_len) = match archive {
            Some((mut file, len)) => {
                file.rewind().context("cannot read what was packed")?;
                (Some(file), len)
            }
            None => (None, 0),
        };
        let around = [&framing.head, &framing.middle, &framing.tail].map(|bytes| bytes.len() as u64).iter().sum::<u64>();
        let total = around + archive_len + len;
        let bar = output::byte_bar(&format!("uploading {}", self.name), total);
        let archive: Box<dyn Read> = match archive {
            Some(file) => Box::new(Exactly::new(file, archive_len).take(archive_len)),
            None => Box::new(io::empty()),
        };
        let wasm = Exactly::new(file, len).take(len);
        let body = Cursor::new(framing.head).chain(archive).chain(Cursor::new(framing.middle)).chain(wasm);
        let body = body.chain(Cursor::new(framing.tail));
        let mut body = Shown { body, left: total, bar: &bar, name: &self.name };
        let upload = Upload { content_type: framing.content_type, len: total, body: &mut body, if_match, signed };
        let deployed = client.put(&self.name, upload);
        bar.finish_and_clear();
        deployed
    }
}

/// A body whose way is shown: as a bar, and when the last byte is on its way, as what the daemon does then.
struct Shown<'a, R> {
    body: R,
    left: u64,
    bar: &'a ProgressBar,
    name: &'a FunctionName,
}

impl<R: Read> Read for Shown<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(buf)?;
        self.bar.inc(count as u64);
        let before = self.left;
        self.left = before.saturating_sub(count as u64);
        if before > 0 && self.left == 0 {
            output::go_on(self.bar, &format!("compiling {}", self.name));
        }
        Ok(count)
    }
}

/// The same manifest with another name.
fn rename(text: &str, name: &FunctionName) -> Result<String, Failure> {
    let mut table: toml::Table = text.parse().context("the manifest is not valid TOML")?;
    table.insert("name".into(), toml::Value::String(name.to_string()));
    Ok(table.to_string())
}

/// Refuses here what the daemon would refuse while the upload is on its way.
fn check(file: &mut File) -> Result<(), Failure> {
    let mut magic = Vec::new();
    file.take(8).read_to_end(&mut magic).context("it cannot be read")?;
    file.rewind().context("it cannot be read")?;
    check_magic(&magic).map_err(|why| Failure::from_fault(&why.into_fault()))
}

/// What stands around the archive and the Wasm in the body of a request (RFC 7578).
#[derive(Debug)]
struct Framing {
    content_type: String,
    head: Vec<u8>,
    middle: Vec<u8>,
    tail: Vec<u8>,
}

impl Default for Framing {
    /// Nothing: the body is the Wasm.
    fn default() -> Self {
        Self { content_type: "application/wasm".into(), head: Vec::new(), middle: Vec::new(), tail: Vec::new() }
    }
}

impl Framing {
    /// The parts `manifest`, `files` if there are any, and `wasm`.
    fn new(manifest: &str, has_files: bool) -> Result<Self, Failure> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| Failure::new(Exit::Failure, format!("no random bytes: {error}")))?;
        let boundary = format!("hob-{:032x}", u128::from_le_bytes(random));
        let part = |name: &str, kind: &str| {
            format!(
                "--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\ncontent-type: {kind}\r\n\r\n"
            )
        };
        let (manifest, wasm) =
            (format!("{}{manifest}\r\n", part("manifest", "application/toml")), part("wasm", "application/wasm"));
        let (head, middle) = match has_files {
            true => (format!("{manifest}{}", part("files", "application/x-tar")), format!("\r\n{wasm}")),
            false => (format!("{manifest}{wasm}"), String::new()),
        };
        Ok(Self {
            content_type: format!("multipart/form-data; boundary={boundary}"),
            head: head.into_bytes(),
            middle: middle.into_bytes(),
            tail: format!("\r\n--{boundary}--\r\n").into_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn a_file_gives_the_function_its_name() {
        let name = |path: &str| Package::of_file(Path::new(path), None).map(|package| package.name.to_string());
        assert_eq!(name("a/hello_http.wasm").unwrap(), "hello-http");
        assert_eq!(name("Sort.v2.wasm").unwrap(), "sort-v2");
        assert!(name("_.wasm").is_err());
    }

    #[test]
    fn a_renamed_manifest_says_the_rest_unchanged() {
        let text = "name = 'a'\nargs = ['x']\n[limits]\nmemory = '1MiB'\n";
        let renamed = Manifest::parse(&rename(text, &"b".parse().unwrap()).unwrap()).unwrap();
        let mut expected = Manifest::parse(text).unwrap();
        expected.name = Some("b".parse().unwrap());
        assert_eq!(renamed, expected);
    }

    #[test]
    fn after_the_last_byte_the_daemon_compiles() {
        let bar = ProgressBar::hidden();
        bar.set_prefix("uploading a");
        let mut body = Shown { body: &b"12345"[..], left: 5, bar: &bar, name: &"a".parse().unwrap() };
        for (len, shown) in [(4, "uploading a"), (4, "compiling a"), (4, "compiling a")] {
            let _count = body.read(&mut vec![0; len]).unwrap();
            assert_eq!(bar.prefix(), shown);
        }
        assert_eq!(bar.position(), 5);
    }

    #[test]
    fn tags_get_their_quotes() {
        assert_eq!([quoted("7"), quoted("\"7\""), quoted("*")], ["\"7\"", "\"7\"", "*"]);
    }

    #[test]
    fn the_framing_is_one_that_parsers_take() {
        let framing = Framing::new("name = 'a'\n", false).unwrap();
        let boundary = framing.content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
        let head = String::from_utf8(framing.head).unwrap();
        assert_eq!(head.matches(&format!("--{boundary}\r\n")).count(), 2);
        assert!(head.contains("\r\n\r\nname = 'a'\n\r\n--") && head.ends_with("\r\n\r\n"));
        assert_eq!(framing.tail, format!("\r\n--{boundary}--\r\n").as_bytes());
        assert!(Framing::default().head.is_empty());
    }
}
