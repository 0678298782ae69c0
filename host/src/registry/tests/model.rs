//! Random changes against a model of the rules.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

struct Random(u64);

impl Random {
    /// xorshift64* (Vigna 2016), below `bound`.
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        u32::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32).unwrap() % bound
    }
}

/// A function as the rules say it should be.
#[derive(Debug, Clone, Default)]
struct Model {
    live: u64,
    last: u64,
    /// Number to the routes of that revision.
    revisions: BTreeMap<u64, Vec<String>>,
}

type World = BTreeMap<(String, String), Model>;

fn free(world: &World, key: &(String, String), routes: &[String]) -> bool {
    let others = world.iter().filter(|(other, _)| other.0 == key.0 && *other != key);
    others.map(|(_, model)| &model.revisions[&model.live]).all(|held| routes.iter().all(|route| !held.contains(route)))
}

fn agree(registry: &Registry, world: &World, step: usize) {
    let functions = all(registry).unwrap();
    let expected: Vec<_> = world.iter().map(|((tenant, name), model)| (tenant.as_str(), name.as_str(), model.live)).collect();
    let found: Vec<_> = functions.iter().map(|f| (f.tenant.as_str(), f.name.as_str(), f.live.number.0)).collect();
    assert_eq!(found, expected, "step {step}");
    let mut references = BTreeSet::new();
    for function in &functions {
        let model = &world[&(function.tenant.to_string(), function.name.to_string())];
        let revisions = registry.revisions(&function.tenant, &function.name).unwrap();
        let found: Vec<_> = revisions.iter().map(|revision| revision.number.0).collect();
        assert_eq!(found, model.revisions.keys().rev().copied().collect::<Vec<_>>(), "step {step}");
        for revision in revisions {
            references.extend(revision.references().map(|reference| (function.tenant.clone(), reference)));
            let routes: Vec<_> = revision.manifest.route.iter().map(ToString::to_string).collect();
            assert_eq!(routes, model.revisions[&revision.number.0], "step {step}");
        }
    }
    assert_eq!(registry.references().unwrap(), references.into_iter().collect::<Vec<_>>(), "step {step}");
    assert_eq!(registry.count().unwrap(), functions.len() as u64, "step {step}");
    let routes = |function: &FunctionRecord| {
        let (tenant, name, routes) = (function.tenant.clone(), function.name.clone(), function.live.manifest.route.clone());
        routes.into_iter().map(move |route| (tenant.clone(), route, name.clone()))
    };
    let mut expected: Vec<_> = functions.iter().flat_map(routes).collect();
    let mut found = registry.routes().unwrap();
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "step {step}");
}

#[test]
fn a_thousand_random_changes_agree_with_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut registry = open(&dir);
    let mut world = World::new();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for step in 0..1000 {
        let key = (["t", "tt"][random.below(2) as usize].to_owned(), ["a", "b", "bb"][random.below(3) as usize].to_owned());
        let (tenant, function): (TenantId, FunctionName) = (key.0.parse().unwrap(), key.1.parse().unwrap());
        let model = world.get(&key).cloned();
        match random.below(10) {
            0..=4 => {
                let mut routes: Vec<String> = (0..random.below(3)).map(|_| format!("/{}", random.below(6))).collect();
                routes.sort();
                routes.dedup();
                let keep = 1 + random.below(4) as usize;
                let texts: Vec<&str> = routes.iter().map(String::as_str).collect();
                // Few modules, so that functions share them.
                let revision = new(&(step % 4).to_string(), &texts);
                let result = registry.publish(&tenant, &function, revision, &Precondition::Any, keep, 1000);
                assert_eq!(result.is_ok(), free(&world, &key, &routes), "step {step}");
                if let Ok(record) = result {
                    let mut model = model.unwrap_or_default();
                    model.last += 1;
                    model.live = model.last;
                    model.revisions.insert(model.last, routes);
                    while model.revisions.len() > keep {
                        model.revisions.pop_first();
                    }
                    assert_eq!(record.live.number.0, model.live);
                    world.insert(key, model);
                }
            }
            5..=7 => {
                let to = (random.below(2) == 0).then(|| u64::from(random.below(8)));
                let result = registry.rollback(&tenant, &function, to.map(RevisionNumber), &Precondition::Any);
                let target = model.as_ref().and_then(|model| match to {
                    Some(number) => model.revisions.contains_key(&number).then_some(number),
                    None => model.revisions.range(..model.live).next_back().map(|(number, _)| *number),
                });
                let target = target.filter(|number| free(&world, &key, &model.as_ref().unwrap().revisions[number]));
                assert_eq!(result.is_ok(), target.is_some(), "step {step}");
                if let Some(number) = target {
                    world.get_mut(&key).unwrap().live = number;
                }
            }
            8 => {
                let removed = registry.remove(&tenant, &function, &Precondition::Any).unwrap();
                assert_eq!(removed, world.remove(&key).is_some(), "step {step}");
            }
            _ => {
                drop(registry);
                registry = open(&dir);
            }
        }
        agree(&registry, &world, step);
    }
}
