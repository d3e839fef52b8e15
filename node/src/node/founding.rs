//! How a cluster comes to be, once, and how a node finds the one it belongs to.
//!
//! A node's identity is a random id made with its data directory. A cluster is created when *every* address of
//! `cluster.initial_nodes` has answered that its disk knows no cluster and that its settings are the same: then the
//! node at the first address writes the plan, which holds everything that the creation decides, and the others take it
//! over by asking. One silent node means waiting, unready, naming it. Whoever knows a cluster is asked first, so while
//! any founding disk survives, no second cluster can arise. A node that the plan does not name, for instance one whose
//! disk was wiped, is a new node: it waits until it is taken in, and never takes anybody's place. A node that lost only
//! its store (see `rebuild`) asks for its cluster again, and founds nothing.

mod round;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use roost_proto::peer::Introduction;
use roost_proto::storage::{ClusterState, KeptIdentity, NodeIdentity, NodeRecord, Plan};
use tokio::sync::watch;

use super::health::NodeHealth;
use super::{identity, local};
use crate::auth::{AdminToken, Hash};
use crate::cluster;
use crate::config::Config;
use crate::peer::grpc;
use crate::peer::server::Doorkeeper;
use crate::storage::keys::Key;
use crate::storage::rocks::steps;
use crate::storage::{Batch, Store, value};
use crate::types::{NodeId, ReplicaId};
use crate::versions::{self, PEER_WIRE};
use round::Round;

/// Between two rounds of asking.
const ROUND: Duration = Duration::from_millis(200);
/// How long one address may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Rounds between two lines in the log about what is waited for.
const ROUNDS_PER_LINE: u32 = 25;

/// What this node's disk knows, and what it tells others.
pub(crate) struct Founding {
    config: Arc<Config>,
    store: Arc<dyn Store>,
    me: NodeId,
    store_id: u64,
    /// Who this node was before it lost its store, if it has belonged to a cluster.
    kept: Option<KeptIdentity>,
    instance: u64,
    plan: watch::Sender<Option<Plan>>,
    admin_token: Mutex<Option<AdminToken>>,
    /// Where other nodes of this cluster have said that they are, since this process started; at most one a node.
    heard: Mutex<BTreeMap<NodeId, String>>,
}

impl Founding {
    /// Reads the disk; makes an identity on an empty one.
    ///
    /// # Errors
    /// A disk that cannot be read or written, or whose format is unknown.
    pub(crate) fn load(
        config: Arc<Config>,
        store: Arc<dyn Store>,
        kept: Option<KeptIdentity>,
    ) -> anyhow::Result<Arc<Self>> {
        let identity: Option<NodeIdentity> = value::get(&*store, &Key::Identity)?;
        let identity = match identity {
            Some(identity) => identity,
            None => make_identity(&*store, kept.as_ref().map(|kept| kept.node.clone()))?,
        };
        let me = NodeId::parse(&identity.id)?;
        let plan: Option<Plan> = value::get(&*store, &Key::Plan)?;
        if let Some(kept) = &kept {
            let other_cluster = plan
                .as_ref()
                .is_some_and(|plan| plan.cluster_id != kept.cluster_id);
            if kept.node != identity.id || other_cluster {
                bail!(
                    "the file identity in {} is of node {} of cluster {}, and the store beside it is another's; put \
                     together what belongs together",
                    config.data_dir.display(),
                    kept.node,
                    kept.cluster_id
                );
            }
        }
        let kept = match (kept, &plan) {
            // A crash came between the plan and the file; nothing was said to anybody yet.
            (None, Some(plan)) => Some(keep_identity(&config, me, plan)?),
            (kept, _) => kept,
        };
        let path = config.data_dir.join(ADMIN_TOKEN_FILE);
        let admin_token = match plan {
            Some(_) => {
                Some(AdminToken::read(&path).context("the admin token of this node's cluster")?)
            }
            None => None,
        };
        Ok(Arc::new(Self {
            config,
            store,
            me,
            store_id: identity.store,
            kept,
            instance: rand::random(),
            plan: watch::Sender::new(plan),
            admin_token: Mutex::new(admin_token),
            heard: Mutex::default(),
        }))
    }

    /// Who this node is.
    pub(crate) fn identity(&self) -> NodeId {
        self.me
    }

    /// Which store this is: the node may have had others.
    pub(crate) fn store_id(&self) -> u64 {
        self.store_id
    }

    /// The cluster that this node belongs to, also while it has no plan.
    fn cluster_id(&self) -> Option<&str> {
        self.kept.as_ref().map(|kept| kept.cluster_id.as_str())
    }

    /// What this node says when asked who it is. The admin token goes only to a node of the plan that knows
    /// `cluster.token`.
    fn answer(&self, asker: &Introduction) -> Introduction {
        let mut introduction = self.introduction();
        introduction.plan = self.plan.borrow().clone();
        if self.is_of_this_cluster(asker) {
            self.note(asker);
            if let Some(token) = &*self.admin_token.lock() {
                introduction.admin_token = token.reveal();
            }
        }
        introduction
    }

    /// A node of the plan that shows the right token hash.
    fn is_of_this_cluster(&self, other: &Introduction) -> bool {
        let id = other.node.as_ref().map(|node| &node.id);
        let plan = self.plan.borrow();
        let mut nodes = plan.iter().flat_map(|plan| &plan.nodes);
        other.token_hash == self.token_hash() && nodes.any(|node| Some(&node.id) == id)
    }

    fn note(&self, other: &Introduction) {
        let node = other.node.clone().unwrap_or_default();
        if let Ok(id) = NodeId::parse(&node.id)
            && id != self.me
        {
            self.heard.lock().insert(id, node.peer_address);
        }
    }

    /// Where a node of this cluster has said that it listens for others.
    pub(crate) fn heard(&self, node: NodeId) -> Option<String> {
        self.heard.lock().get(&node).cloned()
    }

    /// Notes who answered, and where, if it is a node of this cluster.
    ///
    /// # Errors
    /// A copied data directory.
    pub(crate) fn hear(&self, address: &str, answer: &Introduction) -> anyhow::Result<()> {
        round::check_copy(&self.introduction(), address, answer)?;
        let cluster = |plan: &Option<Plan>| plan.as_ref().map(|plan| plan.cluster_id.clone());
        if !self.is_of_this_cluster(answer) || cluster(&answer.plan) != cluster(&self.plan.borrow())
        {
            return Ok(());
        }
        if let Err(reason) = round::check_versions(answer) {
            tracing::warn!(
                address,
                reason,
                "a node of this cluster cannot work with this one"
            );
        }
        self.note(answer);
        Ok(())
    }

    /// Waits until this node belongs to a cluster, and returns the cluster as it was last known here.
    ///
    /// # Errors
    /// Settings that can never fit, a copied data directory, data of another cluster.
    pub(crate) async fn wait(&self, health: &NodeHealth) -> anyhow::Result<ClusterState> {
        let mut rounds = 0u32;
        while self.plan.borrow().is_none() {
            let answers = self.ask(self.founders(), ANSWER_WITHIN).await;
            match round::judge(&self.introduction(), answers)? {
                Round::Join(plan, token) => {
                    tracing::info!(cluster = plan.cluster_id, "joins its cluster");
                    self.adopt(*plan, token)?;
                }
                Round::Create(nodes) => {
                    let token = self.draw_admin_token()?;
                    let plan = self.new_plan(nodes, &token)?;
                    tracing::info!(
                        cluster = plan.cluster_id,
                        nodes = plan.nodes.len(),
                        "creates the cluster"
                    );
                    self.adopt(plan, token)?;
                }
                Round::Wait(why) => {
                    if rounds.is_multiple_of(ROUNDS_PER_LINE) {
                        tracing::info!(why, "waits for its cluster");
                    }
                    health.waits_for(why);
                    rounds = rounds.wrapping_add(1);
                    tokio::time::sleep(ROUND).await;
                }
            }
        }
        self.cluster_state()
    }

    fn introduction(&self) -> Introduction {
        Introduction {
            node: Some(self.record()),
            instance: self.instance,
            shards: self.config.cluster.shards,
            replication_factor: self.config.replicas(),
            initial_nodes: self.founders(),
            token_hash: self.token_hash(),
            plan: None,
            admin_token: String::new(),
            wire_version: PEER_WIRE,
            cluster_id: self.cluster_id().unwrap_or_default().to_owned(),
        }
    }

    /// What the cluster is to know of this node.
    pub(crate) fn record(&self) -> NodeRecord {
        versions::announced(NodeRecord {
            id: self.me.to_string(),
            name: self.config.name.clone(),
            peer_address: self.config.advertised_peer(),
            client_address: self.config.advertised_client(),
            ..NodeRecord::default()
        })
    }

    fn token_hash(&self) -> Bytes {
        let hash = Hash::of(self.config.cluster.token.reveal().as_bytes());
        hash.as_bytes().to_vec().into()
    }

    /// The addresses of `cluster.initial_nodes`, sorted.
    pub(crate) fn founders(&self) -> Vec<String> {
        let mut founders = self.config.founding_nodes();
        founders.sort();
        founders
    }

    /// Introduces this node at each address; whoever does not answer within `limit` has no answer.
    pub(crate) async fn ask(
        &self,
        addresses: impl IntoIterator<Item = String>,
        limit: Duration,
    ) -> Vec<(String, Option<Introduction>)> {
        let asked = addresses.into_iter().map(|address| async move {
            let answer = grpc::introduce(&address, limit, self.introduction()).await;
            (address, answer.ok())
        });
        futures::future::join_all(asked).await
    }

    /// A crash after the token was written and before the plan was leaves a token that no cluster has yet.
    fn draw_admin_token(&self) -> anyhow::Result<AdminToken> {
        let path = self.config.data_dir.join(ADMIN_TOKEN_FILE);
        match path.exists() {
            true => Ok(AdminToken::read(&path)?),
            false => Ok(AdminToken::from_random(rand::random())),
        }
    }

    fn new_plan(&self, nodes: Vec<NodeRecord>, token: &AdminToken) -> anyhow::Result<Plan> {
        let plan = cluster::plan(
            uuid::Uuid::from_bytes(rand::random()).to_string(),
            nodes,
            self.config.cluster.shards,
            self.config.replicas(),
            token.hash().as_bytes().to_vec().into(),
        )?;
        Ok(plan)
    }

    /// Makes the plan and this node's founding replicas durable before anybody is told. A node that had been somebody
    /// before has lost its founding replicas, and opens none.
    pub(super) fn adopt(&self, plan: Plan, token: AdminToken) -> anyhow::Result<()> {
        let path = self.config.data_dir.join(ADMIN_TOKEN_FILE);
        if !path.exists() {
            token.write_new(&path)?;
        } else if AdminToken::read(&path)?.hash() != token.hash() {
            bail!(
                "{} is of another cluster; remove it if that cluster is gone",
                path.display()
            );
        }
        let mut batch = Batch::default();
        let me = self.me.to_string();
        let founded: &[_] = match self.kept {
            None => &plan.placement,
            Some(_) => &[],
        };
        for shard in founded {
            for replica in shard.replicas.iter().filter(|replica| replica.node == me) {
                let row = local::active(shard.shard, replica.replica);
                batch.put_row(&Key::Replica(ReplicaId(replica.replica)), &row);
            }
        }
        batch.put_row(&Key::Plan, &plan);
        self.store.write(batch)?;
        steps::passed("the plan is written");
        self.store.sync()?;
        steps::passed("the plan is durable");
        if self.kept.is_none() {
            keep_identity(&self.config, self.me, &plan)?;
        }
        *self.admin_token.lock() = Some(token);
        self.plan.send_replace(Some(plan));
        Ok(())
    }

    /// The newest this node has heard of its cluster; at first, the plan itself.
    fn cluster_state(&self) -> anyhow::Result<ClusterState> {
        let cached: Option<ClusterState> = value::get(&*self.store, &Key::ClusterCache)?;
        Ok(cached.unwrap_or_else(|| ClusterState {
            plan: self.plan.borrow().clone(),
            epoch: 0,
            renewals: Vec::new(),
        }))
    }
}

impl Doorkeeper for Founding {
    fn admit(&self, cluster_id: &str, node: NodeId, wanted: NodeId) -> Result<(), String> {
        let plan = self.plan.borrow();
        let Some(plan) = &*plan else {
            return Err("this node belongs to no cluster yet".to_owned());
        };
        if plan.cluster_id != cluster_id {
            return Err(format!(
                "this node belongs to another cluster, {}",
                plan.cluster_id
            ));
        }
        if wanted != self.me {
            return Err(format!("here listens node {}, not {wanted}", self.me));
        }
        let node = node.to_string();
        let known = plan.nodes.iter().any(|known| known.id == node);
        known
            .then_some(())
            .ok_or_else(|| "the cluster does not know that node".to_owned())
    }

    fn introduce(&self, introduction: Introduction) -> BoxFuture<'_, Introduction> {
        Box::pin(async move { self.answer(&introduction) })
    }
}

/// Where the admin token stands in a data directory.
pub(crate) const ADMIN_TOKEN_FILE: &str = "admin.token";

/// A node that lost its store stays who it was; the store is another in any case.
fn make_identity(store: &dyn Store, node: Option<String>) -> anyhow::Result<NodeIdentity> {
    let identity = NodeIdentity {
        id: node.unwrap_or_else(|| NodeId::from_random(rand::random()).to_string()),
        created_ms: (crate::replica::clock::system_wall_clock())(),
        store: rand::random(),
    };
    let mut batch = Batch::default();
    batch.put_row(&Key::Identity, &identity);
    store.write(batch)?;
    steps::passed("the identity is written");
    store.sync()?;
    steps::passed("the identity is durable");
    Ok(identity)
}

fn keep_identity(config: &Config, me: NodeId, plan: &Plan) -> anyhow::Result<KeptIdentity> {
    let kept = identity::of(me, plan);
    identity::write(&config.data_dir, &kept)?;
    Ok(kept)
}
