//! Both ends of every range, and the messages of what cannot be read.

use std::time::Duration;

use super::*;

fn set(setting: &str) -> Result<Config, ConfigError> {
    Config::read("", &[setting.into()])
}

#[test]
fn defaults_pass_their_own_check() {
    Config::default().check().unwrap();
    Config::read("", &[]).unwrap();
}

#[test]
fn settings_win_over_the_file() {
    let config =
        Config::read("[net]\nheader_timeout = '3s'\n", &["net.header_timeout=500ms".into(), "data.bytes_max=1MiB".into()])
            .unwrap();
    assert_eq!(config.net.header_timeout.0, Duration::from_millis(500));
    assert_eq!(config.data.bytes_max.0, 1 << 20);
}

#[test]
fn memory_for_buckets_has_its_range() {
    for good in [
        "data.page_cache_bytes=1MiB",
        "data.kv_cache_bytes=0",
        "data.volatile_bytes_max=0",
        "data.object_bytes_max=0",
        "data.objects_bytes_max=0",
        "data.volatile_objects_bytes_max=0",
    ] {
        set(good).unwrap();
    }
    assert!(set("data.page_cache_bytes=1048575").is_err());
}

#[test]
fn every_range_on_both_sides() {
    for good in [
        "net.headers_max=1",
        "net.headers_max=1024",
        "net.head_bytes_max=8KiB",
        "net.head_bytes_max=1MiB",
        "engine.instances_max=1",
        "engine.instances_max=10000",
        "engine.threads=1024",
        "engine.memory_max=1",
        "engine.templates_max=1",
        "engine.templates_bytes_max=1MiB",
        "engine.functions_hot_max=1",
        "engine.large_instances_max=0",
        "engine.large_instances_max=10000",
        "engine.ready_idle=1ms",
        "build.cpu=1s",
        "build.wall=1s",
        "build.queue=10000",
        "data.functions_max=1",
        "logs.function_bytes=64MiB",
        "build.memory=64MiB",
        "build.memory_max=1GiB",
        "data.revisions_max=1",
        "data.revisions_max=1000",
        "data.upload_bytes_max=1KiB",
        "data.upload_bytes_max=1GiB",
        "data.upload_timeout=1ns",
        "net.uri_bytes_max=1",
        "net.uri_bytes_max=32KiB",
        "net.connections_max=1",
        "net.control=[::1]:0",
    ] {
        set(good).unwrap();
    }
    for bad in [
        "net.headers_max=0",
        "net.headers_max=1025",
        "net.head_bytes_max=8191",
        "net.head_bytes_max=1048577",
        "engine.instances_max=0",
        "engine.instances_max=10001",
        "engine.threads=1025",
        "engine.memory_max=0",
        "engine.templates_max=0",
        "engine.templates_bytes_max=1048575",
        "engine.functions_hot_max=0",
        "engine.large_instances_max=10001",
        "engine.ready_idle=0s",
        "build.cpu=999ms",
        "build.wall=999ms",
        "build.queue=10001",
        "data.functions_max=0",
        "logs.function_bytes=65MiB",
        "build.memory=67108863",
        "build.memory_max=1073741823",
        "data.revisions_max=0",
        "data.revisions_max=1001",
        "data.upload_bytes_max=1023",
        "data.upload_bytes_max=1073741825",
        "data.upload_timeout=0s",
        "net.uri_bytes_max=0",
        "net.uri_bytes_max=32769",
        "net.connections_max=0",
        "net.control_connections_max=0",
        "net.control=0.0.0.0:3900",
    ] {
        assert!(matches!(set(bad), Err(ConfigError::Range { .. })), "{bad}: {:?}", set(bad));
    }
}

#[test]
fn times_are_more_than_nothing() {
    for bad in ["data.answers_time=0s", "net.header_timeout=0s", "net.body_idle_timeout=0s", "net.write_idle_timeout=0s"] {
        assert!(matches!(set(bad), Err(ConfigError::Range { .. })), "{bad}: {:?}", set(bad));
    }
}

#[test]
fn paths_that_stay_in_reach_are_absolute() {
    for good in ["process.read=[]", "process.read=['/a', '/b/../c']", "process.write=['/a']"] {
        set(good).unwrap();
    }
    for bad in ["process.read=['/a', 'b']", "process.read=['']", "process.write=['./a']"] {
        assert!(matches!(set(bad), Err(ConfigError::Range { .. })), "{bad}: {:?}", set(bad));
    }
}

#[test]
fn a_setting_has_the_type_of_its_key() {
    for text in ["12", "true", "\"12\"", "./a b"] {
        let config = set(&format!("data.dir={text}")).unwrap();
        assert_eq!(config.data.dir.unwrap().to_str(), Some(text.trim_matches('"')));
    }
    assert_eq!(set("data.bytes_max=4096").unwrap().data.bytes_max.0, 4096);
    assert_eq!(set("engine.threads=3").unwrap().engine.threads, 3);
    for bad in ["engine.threads=true", "engine.threads=many", "data.bytes_max=-1", "net.addr=3000"] {
        assert!(matches!(set(bad), Err(ConfigError::Syntax(_))), "{bad}");
    }
}

#[test]
fn unknown_keys_and_wrong_types_are_named() {
    let error = Config::read("[net]\nx = \n", &[]).unwrap_err().to_string();
    assert!(error.contains("line 2, column 5: ") && !error.contains('\n'), "{error}");
    for (bad, word) in [
        ("net.hedaer_timeout=1s", "hedaer_timeout"),
        ("net.header_timeout=5", "a time"),
        ("net.addr=nowhere", "addr"),
        ("data.bytes_max=lots", "bytes"),
        ("quota.concurrency=true", "a number, or text such as"),
        ("quota.concurrency=[1]", "a number, or text such as"),
        ("quota.cpu_seconds_per_minute=10000000000000", "0 to 1125899906842.624"),
        ("quota.concurrency=99999999999999999999", "0 to 1125899906842624"),
        ("quota.memory=1025TiB", "0 to 1024TiB"),
    ] {
        let error = set(bad).unwrap_err().to_string();
        let table = bad.split_once('.').unwrap().0;
        assert!(error.contains(word) && error.contains(&format!(": `{table}")) && !error.contains('\n'), "{bad}: {error}");
    }
    assert!(matches!(set("nothing"), Err(ConfigError::Setting(_))) && matches!(set("a=b"), Err(ConfigError::Setting(_))));
}

#[test]
fn origins_have_their_ranges() {
    let read = |text: &str| Config::read(text, &[]).map(|config| config.origin);
    let with = |line: &str| read(&format!("[[origin]]\nurl = 's3://a'\n{line}\n"));
    let plain = with("").unwrap().remove(0);
    assert_eq!((plain.region.as_str(), plain.endpoint, plain.key_file), ("us-east-1", None, None));
    let times = [plain.connect_timeout.0, plain.response_timeout.0, plain.idle_timeout.0, plain.fresh.0];
    assert_eq!(times.map(|time| time.as_secs()), [5, 10, 10, 10]);
    for good in ["endpoint = 'http://127.0.0.1:9000'", "endpoint = 'https://s3.example'", "fresh = '0s'", "region = 'x'"] {
        with(good).unwrap();
    }
    for bad in [
        "endpoint = '127.0.0.1:9000'",
        "endpoint = 'ftp://a'",
        "endpoint = 'http://'",
        "endpoint = 'http://a/b'",
        "endpoint = 'http://user@a'",
        "endpoint = 'http://a?b'",
        "region = ''",
        "connect_timeout = '0s'",
        "response_timeout = '0s'",
        "idle_timeout = '0s'",
        "secret = 'x'",
    ] {
        assert!(with(bad).is_err(), "{bad}");
    }
    assert!(read("[[origin]]\nregion = 'a'\n").is_err() && read("[[origin]]\nurl = 'http://a'\n").is_err());
    let many =
        |count: usize| read(&(0..count).map(|number| format!("[[origin]]\nurl = 's3://a/{number}'\n")).collect::<String>());
    assert!(many(64).is_ok() && many(65).is_err());
    let twice = read("[[origin]]\nurl = 's3://a'\n[[origin]]\nurl = 's3://a'\n").unwrap_err();
    assert!(twice.to_string().contains("'s3://a' twice"), "{twice}");
    for good in
        ["data.origin_requests_max=1", "data.origin_requests_max=1024", "data.cache_bytes_max=0", "data.cache_memory_bytes_max=0"]
    {
        set(good).unwrap();
    }
    assert!(set("data.origin_requests_max=0").is_err() && set("data.origin_requests_max=1025").is_err());
}

#[test]
fn the_folder_of_secrets_is_apart() {
    let read = |text: &str| Config::read(text, &[]).map(|config| config.secrets.dir);
    assert_eq!(read("").unwrap(), None);
    assert_eq!(read("[secrets]\ndir = '/etc/hob/secrets'").unwrap().unwrap(), std::path::Path::new("/etc/hob/secrets"));
    for bad in ["", "secrets", "/etc/../secrets"] {
        assert!(read(&format!("[secrets]\ndir = '{bad}'")).is_err(), "{bad}");
    }
    let beside = |other: &str| read(&format!("{other}\n[secrets]\ndir = '/srv/a/secrets'"));
    assert!(beside("[data]\ndir = '/srv/a/data'").is_ok() && beside("[[folder]]\npath = '/srv/a/site'").is_ok());
    for bad in ["[data]\ndir = '/srv/a'", "[data]\ndir = '/srv/a/secrets/b'", "[[folder]]\npath = '/srv/a'"] {
        assert!(beside(bad).unwrap_err().to_string().contains("apart from"), "{bad}");
    }
    assert!(read("[secrets]\nfolder = '/a'").is_err());
}

#[test]
fn folders_have_their_ranges() {
    let read = |text: &str| Config::read(text, &[]).map(|config| config.folder);
    let with = |path: &str, line: &str| read(&format!("[[folder]]\npath = '{path}'\n{line}\n"));
    let plain = with("/srv/a", "").unwrap().remove(0);
    assert_eq!((plain.access, plain.tenants), (crate::grants::Access::Read, None));
    let full = with("/srv/a", "access = 'read-write'\ntenants = ['default', 'b']").unwrap().remove(0);
    assert_eq!((full.access, full.tenants.map(|tenants| tenants.len())), (crate::grants::Access::ReadWrite, Some(2)));
    for bad in ["", "srv", "/", "/srv/../etc", "../a"] {
        assert!(with(bad, "").is_err(), "{bad}");
    }
    for bad in ["access = 'write'", "tenants = ['A']", "tenants = 'default'", "guest = '/a'"] {
        assert!(with("/srv/a", bad).is_err(), "{bad}");
    }
    let both = |a: &str, b: &str| read(&format!("[[folder]]\npath = '{a}'\n[[folder]]\npath = '{b}'\n"));
    assert!(both("/srv/a", "/srv/ab").is_ok());
    assert!(both("/srv/a", "/srv/a/b").is_err() && both("/srv/a/b", "/srv/a").is_err() && both("/srv/a", "/srv/a").is_err());
    let beside = |dir: &str| read(&format!("[data]\ndir = '{dir}'\n[[folder]]\npath = '/srv/a'\n"));
    assert!(beside("/srv/b").is_ok() && beside("/srv/a/data").is_err() && beside("/srv").is_err());
    let many = |count: usize| read(&(0..count).map(|number| format!("[[folder]]\npath = '/srv/{number}'\n")).collect::<String>());
    assert!(many(64).is_ok() && many(65).is_err());
    assert!(set("data.bundle_bytes_max=1GiB").is_ok() && set("data.bundle_bytes_max=1025MiB").is_err());
}

#[test]
fn what_was_set_of_starts_is_known() {
    let text = "[net]\nheaders_max = 10\n[engine]\ntemplates_max = 7\ninstance_wait = '2s'";
    let config = Config::read(text, &["engine.templates_max=9".into(), "build.concurrency=1".into()]).unwrap();
    let set: Vec<_> = config.set.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(set, [("engine.instance_wait", "2s"), ("engine.templates_max", "9"), ("build.concurrency", "1")]);
    assert!(Config::read("", &[]).unwrap().set.is_empty());
}
