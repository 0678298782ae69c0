//! A function's folder: its manifest, its build command, and what that makes.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, PipeReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::ProgressBar;

use super::failure::{Exit, next};
use super::text::clean;
use super::{Failure, output, toolchain};
use crate::manifest::{FILE_NAME, MANIFEST_LEN_MAX, Manifest};

/// A folder with a manifest.
#[derive(Debug)]
pub(super) struct Project {
    /// The folder.
    pub(super) dir: PathBuf,
    /// The manifest as it was written.
    pub(super) text: String,
    /// What it says.
    pub(super) manifest: Manifest,
}

/// What a build left.
#[derive(Debug)]
pub(super) struct Wasm {
    /// The file.
    pub(super) path: PathBuf,
    /// Its length in bytes.
    pub(super) bytes: u64,
    /// How long the build command took; `None` if there is none.
    pub(super) took: Option<Duration>,
}

/// Lines of a build's output that are kept, and the longest one.
const LINES_MAX: usize = 2000;
const LINE_LEN_MAX: u64 = 16 << 10;

impl Project {
    /// Reads the manifest of a folder; `path` may also be the manifest itself.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let (dir, file) = match path.file_name() {
            Some(name) if name == FILE_NAME => (path.parent().unwrap_or(Path::new("")), path.to_owned()),
            _ => (path, path.join(FILE_NAME)),
        };
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let missing = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                let sentence = format!("there is no {FILE_NAME} in '{}'", dir.display());
                Failure::new(Exit::NotFound, sentence).next("hob new NAME")
            }
            _ => Failure::from(error).context(format!("cannot read '{}'", file.display())),
        };
        let len = fs::metadata(&file).map_err(missing)?.len();
        if len > MANIFEST_LEN_MAX as u64 {
            let sentence = format!("'{}' has {len} bytes: expected at most {MANIFEST_LEN_MAX}", file.display());
            return Err(Failure::new(Exit::Failure, sentence).next("hob new NAME"));
        }
        let text = fs::read_to_string(&file).map_err(missing)?;
        let manifest = Manifest::parse(&text)
            .with_context(|| format!("'{}' cannot be used", file.display()))
            .map_err(next("hob deploy --help"))?;
        Ok(Self { dir: dir.to_owned(), text, manifest })
    }

    /// Name of the function, for words: the manifest's, else the folder's.
    pub(super) fn title(&self) -> String {
        let folder = || self.dir.canonicalize().ok()?.file_name().map(|name| name.to_string_lossy().into_owned());
        self.manifest.name.as_ref().map(ToString::to_string).or_else(folder).unwrap_or_default()
    }

    /// Runs the build command, if there is one, and finds the Wasm file.
    pub(super) fn build(&self) -> Result<Wasm, Failure> {
        let took = self.manifest.build.as_deref().map(|command| self.run(command)).transpose()?;
        Ok(Wasm { took, ..self.wasm()? })
    }

    /// The Wasm file as it lies there.
    pub(super) fn wasm(&self) -> Result<Wasm, Failure> {
        let Some(wasm) = &self.manifest.wasm else {
            let sentence = format!("{FILE_NAME} of '{}' does not say where its Wasm file is: add wasm = \"PATH\"", self.title());
            return Err(Failure::new(Exit::Failure, sentence).next("hob deploy FILE.wasm"));
        };
        let path = self.dir.join(wasm);
        let meta = fs::metadata(&path).with_context(|| format!("there is no Wasm file '{}'", path.display()));
        let meta = meta.map_err(|error| {
            let hint = format!("'wasm' in {FILE_NAME} must name the file that 'build' makes");
            Failure::from(error).exit(Exit::NotFound).hint(hint).next(format!("hob build {}", self.dir.display()))
        })?;
        Ok(Wasm { path, bytes: meta.len(), took: None })
    }

    /// Runs a shell command in the folder. On a terminal its output is shown only if it fails, else it goes to standard error.
    fn run(&self, shell: &str) -> Result<Duration, Failure> {
        let began = Instant::now();
        let mut command = Command::new("sh");
        command.arg("-c").arg(shell).current_dir(&self.dir).stdin(Stdio::null());
        // The manifest says where the file will be, relative to itself; this would put it elsewhere.
        command.env_remove("CARGO_TARGET_DIR");
        let what = format!("building {}", self.title());
        let (status, lines) = if io::stderr().is_terminal() {
            watch(command, &output::spinner(&what)).context("cannot run the build command")?
        } else {
            output::note(format!("{what}: {}", clean(shell)));
            let status = command.stdout(io::stderr()).status().context("cannot run sh")?;
            (status, VecDeque::new())
        };
        if status.success() {
            return Ok(began.elapsed());
        }
        // A compiler's own colours and arrows are wanted here; it is the user's own program.
        lines.iter().for_each(output::note);
        Err(self.failed(shell, status))
    }

    fn failed(&self, shell: &str, status: ExitStatus) -> Failure {
        let failure = Failure::new(Exit::Failure, format!("the build command of '{}' failed, {status}: {shell}", self.title()));
        let missing = toolchain::missing_targets(&self.dir).unwrap_or_default();
        match missing.into_iter().find(|target| shell.contains(target)) {
            Some(target) => {
                failure.hint(format!("the target {target} is not installed")).next(format!("rustup target add {target}"))
            }
            None => failure.next("hob doctor"),
        }
    }
}

/// Runs a command under a spinner that shows its last line of output. Returns its end and its last lines.
fn watch(mut command: Command, spinner: &ProgressBar) -> io::Result<(ExitStatus, VecDeque<String>)> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // It holds the writing ends; the pipe would not end while they are open here.
    drop(command);
    let lines = collect(reader, spinner)?;
    let status = child.wait()?;
    spinner.finish_and_clear();
    Ok((status, lines))
}

fn collect(reader: PipeReader, spinner: &ProgressBar) -> io::Result<VecDeque<String>> {
    let mut lines = VecDeque::new();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while io::Read::take(&mut reader, LINE_LEN_MAX).read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        spinner.set_message(clean(text.trim()).chars().take(60).collect::<String>());
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(text);
        line.clear();
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(manifest: &str) -> (tempfile::TempDir, Project) {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(FILE_NAME), manifest).unwrap();
        let project = Project::load(temp.path()).unwrap();
        (temp, project)
    }

    #[test]
    fn a_build_runs_in_the_folder_of_the_manifest() {
        let (temp, project) = project("name = 'a'\nwasm = 'out/a.wasm'\nbuild = 'mkdir -p out && echo four > out/a.wasm'\n");
        assert_eq!(project.wasm().unwrap_err().code(), Exit::NotFound as u8);
        let wasm = project.build().unwrap();
        assert_eq!((wasm.path, wasm.bytes), (temp.path().join("out/a.wasm"), 5));
        assert!(Project::load(&temp.path().join(FILE_NAME)).is_ok());
    }

    #[test]
    fn a_failed_build_and_a_missing_manifest_are_failures() {
        let (_temp, project) = project("wasm = 'a.wasm'\nbuild = 'exit 3'\n");
        assert_eq!(project.build().unwrap_err().code(), 1);
        let (_temp, project) = self::project("name = 'a'");
        assert_eq!(project.build().unwrap_err().code(), 1);
        for path in ["/nonexistent", "/dev/null"] {
            assert_eq!(Project::load(Path::new(path)).unwrap_err().code(), Exit::NotFound as u8, "{path}");
        }
    }

    #[test]
    fn what_a_build_says_is_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 4"]);
        let (status, lines) = watch(command, &ProgressBar::hidden()).unwrap();
        assert_eq!(status.code(), Some(4));
        assert_eq!(lines, ["one", "two"]);
    }
}
