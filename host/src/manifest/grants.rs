//! `[grants]` of a manifest: what the function may reach.
//!
//! Owns its keys and the messages for wrong ones. Knows nothing about what exists. Invariant: nothing is granted twice.

use toml::Value;

use super::data::{BUCKETS_MAX, bucket_name, distinct, fields, list, table, word};
use super::files::{FOLDERS_MAX, check_guest, clock, distinct_guests, file_grant};
use super::{ManifestError, http, problem, secrets, string, unknown};
use crate::grants::{Access, DataGrant, FUNCTION_GRANTS_MAX, ManifestGrants};
use crate::id::FunctionName;

const KEYS: [&str; 6] = ["data", "files", "http", "secrets", "functions", "clock"];
const FUNCTIONS: &str = "grants.functions";
const DATA_KEYS: [&str; 3] = ["bucket", "access", "mount"];

/// Reads `[grants]`.
pub(super) fn grants(value: Value) -> Result<ManifestGrants, ManifestError> {
    let mut grants = ManifestGrants::default();
    for (key, value) in table("grants", value)? {
        match key.as_str() {
            "data" => grants.data = list("grants.data", value, BUCKETS_MAX, data_grant)?,
            "files" => grants.files = list("grants.files", value, FOLDERS_MAX, file_grant)?,
            "clock" => grants.clock = clock(value)?,
            "http" => grants.http = http::grants(value)?,
            "secrets" => grants.secrets = secrets::grants(value)?,
            "functions" => grants.functions = list(FUNCTIONS, value, FUNCTION_GRANTS_MAX, function_grant)?,
            _ => return Err(unknown(key, "[grants]", &KEYS)),
        }
    }
    distinct("grants.data", "bucket", grants.data.iter().map(|grant| &grant.bucket))?;
    distinct(FUNCTIONS, "function", grants.functions.iter())?;
    let mounts = grants.data.iter().filter_map(|grant| grant.mount.as_deref());
    distinct_guests(grants.files.iter().map(|grant| grant.guest.as_str()).chain(mounts))?;
    Ok(grants)
}

fn data_grant(value: Value) -> Result<DataGrant, ManifestError> {
    let mut fields = fields("grants.data", "a grant of data", value, &DATA_KEYS)?;
    let bucket = bucket_name("grants.data.bucket", fields.remove("bucket"))?;
    let access = word("grants.data.access", fields.remove("access"), &Access::ALL.map(|access| (access.as_str(), access)))?;
    let mount = fields.remove("mount").map(|value| mount(string("grants.data.mount", value)?)).transpose()?;
    Ok(DataGrant { bucket, access: access.unwrap_or(Access::Read), mount })
}

fn function_grant(value: Value) -> Result<FunctionName, ManifestError> {
    string(FUNCTIONS, value)?.parse().map_err(|error| problem(FUNCTIONS, error))
}

/// What is granted and cannot be used yet.
pub(super) fn unused(grants: &ManifestGrants) -> Option<String> {
    (!grants.functions.is_empty()).then(|| {
        "[grants] functions: kept and shown, but this version of Hob has no call from one function to another".to_owned()
    })
}

fn mount(path: String) -> Result<String, ManifestError> {
    check_guest("grants.data.mount", "/photos", &path).map(|()| path)
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    fn error(text: &str) -> String {
        Manifest::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn grants_of_data_are_read() {
        let manifest = Manifest::parse(
            "[grants]\ndata = [{ bucket = 'photos' }, { bucket = 'hits', access = 'read-write' }, { bucket = 'site', mount = '/site' }]\n",
        )
        .unwrap();
        let access: Vec<_> = manifest.grants.data.iter().map(|grant| (grant.bucket.as_str(), grant.access)).collect();
        assert_eq!(access, [("photos", Access::Read), ("hits", Access::ReadWrite), ("site", Access::Read)]);
        assert_eq!(manifest.grants.data[2].mount.as_deref(), Some("/site"));
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }

    #[test]
    fn grants_of_functions_are_read_and_told_to_do_nothing_yet() {
        let manifest = Manifest::parse("[grants]\nfunctions = ['resize', 'thumb-2']").unwrap();
        assert_eq!(manifest.grants.functions.iter().map(FunctionName::as_str).collect::<Vec<_>>(), ["resize", "thumb-2"]);
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
        let notes = manifest.notes();
        assert!(notes.len() == 1 && notes[0].contains("no call from one function to another"), "{notes:?}");
        assert_eq!(Manifest::parse("[grants]\nfunctions = []").unwrap().notes(), [""; 0]);
    }

    #[test]
    fn wrong_ones_say_what_was_expected() {
        assert!(error("[grants]\ndta = []").contains("did you mean 'data'?"));
        assert!(error("grants = 1").contains("expected a table"));
        assert!(error("[grants]\ndata = 'photos'").contains("expected a list of tables"));
        assert!(error("[grants]\ndata = [{ bukket = 'a' }]").contains("did you mean 'bucket'?"));
        assert!(error("[grants]\ndata = [{ access = 'read' }]").contains("expected the name of a bucket"));
        assert!(error("[grants]\ndata = [{ bucket = 'A' }]").contains("not a valid name"));
        assert!(
            error("[grants]\ndata = [{ bucket = 'a', access = 'all' }]").contains("expected 'read' or 'read-write', found 'all'")
        );
        for bad in ["", "a", "/", "//", "/../site", "/a//b/", "/x/", "/./x", "/x/.."] {
            let error = error(&format!("[grants]\ndata = [{{ bucket = 'a', mount = \"{bad}\" }}]"));
            assert!(
                error.contains("'grants.data.mount'") && error.contains("expected a path such as '/photos'"),
                "{bad}: {error}"
            );
        }
        assert!(
            error("[grants]\ndata = [{ bucket = 'a', mount = '/x' }, { bucket = 'b', mount = '/x' }]")
                .contains("folders are to be '/x'")
        );
        assert!(error("[grants]\ndata = [{ bucket = 'a' }, { bucket = 'a' }]").contains("'a' is named twice"));
        assert!(error("[grants]\nfunction = ['a']").contains("did you mean 'functions'?"));
        assert!(error("[grants]\nfunctions = 'a'").contains("expected a list"));
        assert!(error("[grants]\nfunctions = [1]").contains("expected text in quotes, found integer"));
        assert!(error("[grants]\nfunctions = ['A']").contains("'A' is not a valid name"));
        assert!(error("[grants]\nfunctions = ['a', 'b', 'a']").contains("function 'a' is named twice"));
    }

    #[test]
    fn counts_on_both_sides() {
        let grants = |count: usize| {
            let grants: Vec<_> = (0..count).map(|number| format!("{{ bucket = 'b{number}' }}")).collect();
            format!("[grants]\ndata = [{}]", grants.join(","))
        };
        assert!(Manifest::parse(&grants(BUCKETS_MAX)).is_ok() && Manifest::parse(&grants(BUCKETS_MAX + 1)).is_err());
        let functions = |count: usize| {
            let names: Vec<_> = (0..count).map(|number| format!("'f{number}'")).collect();
            Manifest::parse(&format!("[grants]\nfunctions = [{}]", names.join(",")))
        };
        assert!(functions(FUNCTION_GRANTS_MAX).is_ok() && functions(FUNCTION_GRANTS_MAX + 1).is_err());
    }
}
