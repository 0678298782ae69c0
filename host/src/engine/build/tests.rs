use std::os::unix::fs::PermissionsExt;

use rustix::io::Errno;

use super::*;
use crate::manifest::Manifest;

/// A child that dies unless it is to take no snapshot.
const CHILD: &str = r#"#!/bin/sh
case "$(tr -d '\0')" in
  *'"mode":"off"'*) echo '{"built":{"shape":"handler","memory_bytes_min":0,"image":{"start":0,"end":0},"snapshot":null,"notes":[],"tried":"no","limits":LIMITS}}' ;;
  *) echo left >"$4"; kill -SEGV $$ ;;
esac
"#;

#[tokio::test]
async fn a_child_that_dies_is_a_fault_or_a_function_without_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("child");
    let limits = serde_json::to_string(&Manifest::default().limits).unwrap();
    write_program(&program, &CHILD.replace("LIMITS", &limits));
    let builder = Builder::new(Helper::on_thread(program), config::Build::default()).unwrap();
    let outputs = Outputs { native: dir.path().join("native"), snapshot: dir.path().join("snapshot") };
    let build = async |mode: &str| {
        let wasm = dir.path().join("wasm");
        std::fs::write(&wasm, "a module").unwrap();
        let manifest = Manifest::parse(&format!("snapshot = '{mode}'")).unwrap();
        let job = Job::deploy(&"a".parse().unwrap(), &manifest);
        for left in [&outputs.native, &outputs.snapshot] {
            remove(left).unwrap();
        }
        builder.build(&TenantId::default(), File::open(wasm).unwrap(), job, &outputs, |_| true).await
    };
    let built = build("auto").await.unwrap();
    assert!(built.notes.len() == 1 && built.notes[0].starts_with(&format!("no snapshot: {UNEXPECTED}; ")), "{:?}", built.notes);
    assert_eq!(std::fs::read(&outputs.native).unwrap(), b"", "what the first one left is in nobody's way");
    assert!(!outputs.snapshot.exists(), "none was taken");
    assert_eq!(build("off").await.unwrap().notes, [""; 0]);
    assert_eq!(build("required").await.unwrap_err().code, Code::NotDeployable);
    // What the second one says of the module is better than how the first one ended.
    let refused = CHILD.replacen(
        "{\"built\"",
        "{\"refused\":{\"over_cap\":false,\"detail\":\"no function\",\"hint\":null}}' ; exit ; echo '{\"built\"",
        1,
    );
    write_program(&dir.path().join("child"), &refused);
    assert_eq!(build("auto").await.unwrap_err().detail, "no function");
    let said = "\"hint\":null,\"log\":[{\"source\":\"log\",\"level\":\"error\",\"text\":\"no\"}]";
    write_program(&dir.path().join("child"), &refused.replacen("\"hint\":null", said, 1));
    assert_eq!(build("auto").await.unwrap_err().detail, "no function; it said: no");
}

#[tokio::test]
async fn a_note_says_how_the_first_child_ended_and_what_to_do() {
    let limits = serde_json::to_string(&Manifest::default().limits).unwrap();
    for (end, note) in [
        ("kill -SEGV $$", format!("no snapshot: {UNEXPECTED}; report it")),
        ("kill -KILL $$", format!("no snapshot: {KILLED}; try again when")),
        (
            "kill -XCPU $$",
            "no snapshot: the build was ended: it used more than 60s of processor time; make the module smaller or its initialisation shorter".into(),
        ),
        ("echo memory allocation >&2; kill -ABRT $$", "no snapshot: the build was ended: it needed more than ".into()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (program, wasm) = (dir.path().join("child"), dir.path().join("wasm"));
        // A core file of a shell is nobody's.
        let child = CHILD.replace("LIMITS", &limits).replace("kill -SEGV $$", &format!("ulimit -c 0; {end}"));
        write_program(&program, &child);
        std::fs::write(&wasm, "a module").unwrap();
        let builder = Builder::new(Helper::on_thread(program), config::Build::default()).unwrap();
        let outputs = Outputs { native: dir.path().join("native"), snapshot: dir.path().join("snapshot") };
        let job = Job::deploy(&"a".parse().unwrap(), &Manifest::default());
        let built = builder.build(&TenantId::default(), File::open(&wasm).unwrap(), job, &outputs, |_| true).await.unwrap();
        assert!(built.notes.len() == 1 && built.notes[0].starts_with(&note), "{end}: {:?}", built.notes);
        let advice = built.notes[0].rsplit_once("; ").unwrap().1;
        assert!(
            ["snapshot = \"off\"", "build.memory_max", "[build]"].iter().any(|word| advice.contains(word)),
            "{end}: {advice}"
        );
    }
}

#[tokio::test]
async fn who_killed_a_child_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for (signal, word, code) in [
        ("XCPU", "60s of processor time", Code::BuildOverLimit),
        ("KILL", "out of memory", Code::Overloaded),
        ("SEGV", "unexpectedly", Code::NotDeployable),
    ] {
        let (program, wasm) = (dir.path().join(signal), dir.path().join("wasm"));
        let output = |name: &str| dir.path().join(format!("{signal}-{name}"));
        let outputs = Outputs { native: output("native"), snapshot: output("snapshot") };
        // A core file of a shell is nobody's.
        let script = format!("#!/bin/sh\nulimit -c 0\ncat >/dev/null\nkill -{signal} $$\n");
        write_program(&program, &script);
        std::fs::write(&wasm, "a module").unwrap();
        let builder = Builder::new(Helper::on_thread(program), config::Build::default()).unwrap();
        let manifest = Manifest::parse("snapshot = 'required'").unwrap();
        let job = Job::deploy(&"a".parse().unwrap(), &manifest);
        let fault = builder.build(&TenantId::default(), File::open(wasm).unwrap(), job, &outputs, |_| true).await.unwrap_err();
        assert!(fault.code == code && fault.detail.contains(word), "{signal}: {fault:?}");
        assert_eq!(fault.detail.contains("processor"), signal == "XCPU", "{signal}: {fault:?}");
    }
}

#[tokio::test]
async fn the_compiler_has_few_threads_on_any_machine() {
    assert_eq!([0, 1, 2, 4, 5, 64, 256].map(threads), [1, 1, 2, 4, 4, 4, 4]);
    let dir = tempfile::tempdir().unwrap();
    let outputs = Outputs { native: dir.path().join("native"), snapshot: dir.path().join("snapshot") };
    let (program, wasm) = (dir.path().join("child"), dir.path().join("wasm"));
    let refused = r#"{"refused":{"over_cap":false,"detail":"'$RAYON_NUM_THREADS'","hint":null}}"#;
    write_program(&program, &format!("#!/bin/sh\ncat >/dev/null\necho '{refused}'\n"));
    std::fs::write(&wasm, "a module").unwrap();
    let job = Job::deploy(&"a".parse().unwrap(), &Manifest::default());
    let builder = Builder::new(Helper::on_thread(program), config::Build::default()).unwrap();
    let fault = builder.build(&TenantId::default(), File::open(wasm).unwrap(), job, &outputs, |_| true).await.unwrap_err();
    assert_eq!(fault.detail, threads(cores()).to_string());
}

#[tokio::test]
async fn a_failure_of_the_node_is_not_the_module_s() {
    let dir = tempfile::tempdir().unwrap();
    let outputs = Outputs { native: dir.path().join("native"), snapshot: dir.path().join("snapshot") };
    // What it is to say is its module.
    let (program, wasm) = (dir.path().join("child"), dir.path().join("wasm"));
    write_program(&program, "#!/bin/sh\neval \"$(tr -d '\\0' | tail -n 1)\"\n");
    let builder = Builder::new(Helper::on_thread(program), config::Build::default()).unwrap();
    let failed = |errno: i32| format!("echo '{{\"failed\":{{\"errno\":{errno},\"error\":\"secret\"}}}}'");
    for (end, code) in [
        (failed(Errno::MFILE.raw_os_error()), Code::Overloaded),
        (failed(Errno::AGAIN.raw_os_error()), Code::Overloaded),
        (failed(Errno::NOSPC.raw_os_error()), Code::StorageFull),
        (failed(Errno::NOMEM.raw_os_error()), Code::BuildOverLimit),
        (failed(Errno::IO.raw_os_error()), Code::Internal),
        ("echo '{\"failed\":{\"errno\":null,\"error\":\"secret\"}}'".into(), Code::Internal),
        ("echo secret >&2; exit 1".into(), Code::Internal),
        ("echo secret >&2; exit 101".into(), Code::NotDeployable),
    ] {
        std::fs::write(&wasm, format!("\n{end}\n")).unwrap();
        [&outputs.native, &outputs.snapshot].into_iter().for_each(|output| remove(output).unwrap());
        let job = Job::deploy(&"a".parse().unwrap(), &Manifest::default());
        let fault = builder.build(&TenantId::default(), File::open(&wasm).unwrap(), job, &outputs, |_| true).await.unwrap_err();
        assert_eq!(fault.code, code, "{end}");
        assert!(!fault.detail.contains("secret"), "{end}: {}", fault.detail);
    }
}

#[tokio::test]
async fn outputs_that_cannot_be_made_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (program, wasm) = (dir.path().join("child"), dir.path().join("wasm"));
    write_program(&program, "#!/bin/sh\ncat >/dev/null\n");
    std::fs::write(&wasm, "a module").unwrap();
    let builder = Builder::new(Helper::on_thread(program), config::Build::default()).unwrap();
    let build = async |native: PathBuf| {
        let outputs = Outputs { native, snapshot: dir.path().join("snapshot") };
        let job = Job::deploy(&"a".parse().unwrap(), &Manifest::default());
        builder.build(&TenantId::default(), File::open(&wasm).unwrap(), job, &outputs, |_| true).await.unwrap_err().code
    };
    assert_eq!(build(wasm.clone()).await, Code::Internal, "nothing is written over");
    assert_eq!(build(dir.path().join("no/folder")).await, Code::Internal);
}

#[tokio::test]
async fn without_a_helper_builds_are_503_and_the_node_knows() {
    let dir = tempfile::tempdir().unwrap();
    let (program, wasm) = (dir.path().join("child"), dir.path().join("wasm"));
    write_program(&program, "#!/bin/sh\ncat >/dev/null\nexec sleep 1000\n");
    std::fs::write(&wasm, "a module").unwrap();
    let (helper, stop) = Helper::that_can_be_stopped(program);
    let builder = Builder::new(helper, config::Build::default()).unwrap();
    assert!(builder.is_able());
    let build = async |name: &str| {
        let outputs = Outputs { native: dir.path().join(name), snapshot: dir.path().join("snapshot") };
        let job = Job::deploy(&"a".parse().unwrap(), &Manifest::default());
        builder.build(&TenantId::default(), File::open(&wasm).unwrap(), job, &outputs, |_| true).await.unwrap_err()
    };
    let stopped = async {
        tokio::task::yield_now().await;
        stop();
    };
    // One that runs, and one that comes too late.
    let (fault, ()) = tokio::join!(build("first"), stopped);
    assert!(fault.code == Code::Overloaded && fault.detail.contains("no builds"), "{fault:?}");
    std::fs::remove_file(dir.path().join("snapshot")).unwrap();
    let fault = build("second").await;
    assert!(fault.code == Code::Overloaded && fault.hint.unwrap().contains("start hob again"));
    assert!(!builder.is_able());
}

fn write_program(path: &std::path::Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
}
