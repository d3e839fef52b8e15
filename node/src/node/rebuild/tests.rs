//! A crash at every step of setting a store aside and beginning anew. A crash is a copy of the data directory.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use roost_proto::storage::{ClusterState, NodeRecord, Plan};
use tempfile::TempDir;

use super::super::founding::Founding;
use super::super::local;
use super::*;
use crate::auth::AdminToken;
use crate::cluster;
use crate::storage::rocks::steps;
use crate::storage::{Batch, Column};

const SHARDS: u32 = 4;
const ASIDE: &str = "store.damaged";

/// Everything in a directory, by its path within it.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![dir.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => {
                    let name = path.strip_prefix(dir).unwrap().to_owned();
                    found.insert(name, fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

/// What a kill at this moment leaves.
fn crashed(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in contents(dir).into_keys() {
        let to = copy.path().join(&name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(dir.join(name), to).unwrap();
    }
    copy
}

fn config(data_dir: &Path) -> Arc<Config> {
    let mut config = Config {
        data_dir: data_dir.to_owned(),
        ..Config::default()
    };
    config.cluster.shards = SHARDS;
    Arc::new(config)
}

fn token() -> AdminToken {
    AdminToken::from_random([7; 32])
}

fn plan(me: NodeId) -> Plan {
    let ids = [
        me,
        NodeId::from_random([1; 16]),
        NodeId::from_random([2; 16]),
    ];
    let record = |id: NodeId| NodeRecord {
        id: id.to_string(),
        name: id.to_string(),
        ..NodeRecord::default()
    };
    let nodes = ids.map(record).to_vec();
    let hash = token().hash().as_bytes().to_vec().into();
    cluster::plan("c".to_owned(), nodes, SHARDS, 3, hash).unwrap()
}

/// What the meta shard says: as founded.
fn placement(plan: &Plan) -> Placement {
    let state = ClusterState {
        plan: Some(plan.clone()),
        epoch: 1,
        renewals: Vec::new(),
    };
    Placement::from_state(&state).unwrap()
}

/// A node's start, to where it knows what it has lost.
fn start(config: &Arc<Config>, plan: &Plan) -> (Arc<dyn Store>, Arc<Founding>) {
    let Opened { store, kept } = open(config).unwrap();
    let founding = Founding::load(Arc::clone(config), Arc::clone(&store), kept).unwrap();
    if value::get::<Plan>(&*store, &Key::Plan).unwrap().is_none() {
        founding.adopt(plan.clone(), token()).unwrap();
    }
    let (me, store_id) = (founding.identity(), founding.store_id());
    let locals = local::all(&*store).unwrap();
    let lost = lost(me, store_id, &placement(plan), &locals);
    local::write(&*store, &lost).unwrap();
    (store, founding)
}

/// A founded node whose store is damaged.
struct Damaged {
    dir: TempDir,
    me: NodeId,
    store_id: u64,
    plan: Plan,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Damaged {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let Opened { store, kept } = open(&config).unwrap();
        let founding = Founding::load(Arc::clone(&config), Arc::clone(&store), kept).unwrap();
        let (me, store_id) = (founding.identity(), founding.store_id());
        let plan = plan(me);
        founding.adopt(plan.clone(), token()).unwrap();
        let mut batch = Batch::default();
        batch.put(Column::State, "what only this node may have", "state");
        store.write(batch).unwrap();
        store.sync().unwrap();
        assert_eq!(local::all(&*store).unwrap().len() as u32, SHARDS + 1);
        drop((store, founding));
        let path = keeper::store_path(&config);
        damage::condemn(&path, "for a test");
        let files = contents(&path);
        Self {
            dir,
            me,
            store_id,
            plan,
            files,
        }
    }

    /// Whole, where it was or set aside; and no replica of it may ever speak again.
    fn check(&self, data_dir: &Path, when: &str) {
        let config = config(data_dir);
        let (store, founding) = start(&config, &self.plan);
        assert_eq!(founding.identity(), self.me, "{when}");
        assert_ne!(founding.store_id(), self.store_id, "{when}");
        let locals = local::all(&*store).unwrap();
        assert_eq!(locals.len() as u32, SHARDS + 1, "{when}");
        for local in &locals {
            assert_eq!(local.state(), ReplicaState::Lost, "{when}: {local:?}");
        }
        let aside = contents(&data_dir.join(ASIDE));
        assert!(
            aside == self.files,
            "{when}: the store set aside is not whole"
        );
    }
}

/// Goal: wherever a crash comes between the damage and the new store's first rows, the next start ends where an
/// undisturbed one does: the same node, a new store, every replica lost, the old store whole. Method: a copy of the data
/// directory after each step, from each of which the node starts, twice.
#[test]
fn a_crash_at_any_step_of_setting_aside_ends_before_or_after_it() {
    let damaged = Damaged::new();
    let images: Rc<RefCell<Vec<(&str, TempDir)>>> = Rc::default();
    images
        .borrow_mut()
        .push(("before", crashed(damaged.dir.path())));
    let (taken, dir) = (Rc::clone(&images), damaged.dir.path().to_owned());
    let watcher = move |step| taken.borrow_mut().push((step, crashed(&dir)));
    let config = config(damaged.dir.path());
    let node = steps::watch(watcher, || start(&config, &damaged.plan));
    drop(node);
    let images = images.take();
    let steps: Vec<&str> = images.iter().map(|(step, _)| *step).collect();
    for step in [
        "the store is set aside",
        "the sync mark is written",
        "the database is there",
        "the identity is durable",
        "the plan is written",
    ] {
        assert!(steps.contains(&step), "{step} is not among {steps:?}");
    }
    for (step, image) in &images {
        damaged.check(image.path(), step);
        damaged.check(image.path(), &format!("{step}, and once more"));
    }
    damaged.check(damaged.dir.path(), "undisturbed");
}

/// Goal: neither does a crash in the middle of deleting the old store bring anything of it back. Method: the store set
/// aside loses one file after the other; each time the node starts, and at last deletes what is left.
#[test]
fn a_crash_while_the_old_store_is_deleted_is_followed_by_its_deletion() {
    let damaged = Damaged::new();
    let config = config(damaged.dir.path());
    drop(start(&config, &damaged.plan));
    let aside = damaged.dir.path().join(ASIDE);
    for name in damaged.files.keys() {
        fs::remove_file(aside.join(name)).unwrap();
        let image = crashed(damaged.dir.path());
        let config = self::config(image.path());
        let (store, founding) = start(&config, &damaged.plan);
        assert_eq!(founding.identity(), damaged.me);
        let locals = local::all(&*store).unwrap();
        assert!(
            locals
                .iter()
                .all(|local| local.state() == ReplicaState::Lost)
        );
        delete_aside(image.path()).unwrap();
        assert!(!image.path().join(ASIDE).exists());
    }
}

/// Goal: a node that is damaged again before its rebuild has ended begins anew, under its name, and none of its stores is
/// lost for it. Method: each new store is damaged, until there are more than a sound disk would ever damage: that start is
/// refused and changes nothing.
#[test]
fn a_store_that_is_damaged_during_its_rebuild_is_set_aside_too() {
    let damaged = Damaged::new();
    let config = config(damaged.dir.path());
    let path = keeper::store_path(&config);
    let mut stores = Vec::new();
    for aside in asides(damaged.dir.path()) {
        stores.push((aside, contents(&path)));
        let (store, founding) = start(&config, &damaged.plan);
        assert_eq!(founding.identity(), damaged.me);
        let locals = local::all(&*store).unwrap();
        assert_eq!(locals.len() as u32, SHARDS + 1);
        assert!(
            locals
                .iter()
                .all(|local| local.state() == ReplicaState::Lost)
        );
        drop((store, founding));
        for (aside, before) in &stores {
            assert!(contents(aside) == *before, "{} changed", aside.display());
        }
        damage::condemn(&path, "again");
    }
    assert_eq!(stores.len(), ASIDE_MAX);
    let before = contents(damaged.dir.path());
    for _ in 0..2 {
        let refused = open(&config).err().unwrap().to_string();
        assert!(refused.contains("4 stores were set aside"), "{refused}");
        assert!(contents(damaged.dir.path()) == before);
    }
    assert!(delete_aside(damaged.dir.path()).unwrap());
    assert!(!is_aside(damaged.dir.path()));
    drop(start(&config, &damaged.plan));
}
