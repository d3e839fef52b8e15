//! What a node does for the cluster in the background: reads the others' clocks, keeps its placement fresh, and moves
//! leaderships: back to their preferred nodes, and away from a node whose disk is full or whose clock is off.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roost_proto::peer::{
    ClockRequest, ReadCluster, Request, request, response, shard_request, shard_response,
};
use roost_proto::storage::{
    ClusterState, Found, NodeRecord, Outcome, Plan, UpdateNode, command, outcome,
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::peer::{Lane, Peers};
use crate::replica::clock::{Reading, Vitals, WallClock};
use crate::replica::{Replica, Replicas};
use crate::router::Router;
use crate::storage::keys::Key;
use crate::storage::value;
use crate::types::{NodeId, ReplicaId, ShardId};

/// Between two rounds.
pub const TICK: Duration = Duration::from_secs(1);
/// How long another node may take to say what time it is; a slower answer would say little.
const CLOCK_WITHIN: Duration = Duration::from_millis(500);
/// Between two looks at the meta shard, for nodes that hold no replica of it.
pub const REFRESH: Duration = Duration::from_secs(5);
/// How long a preferred leader has to be well before it gets its leaderships back.
const SETTLED: Duration = Duration::from_secs(5);
/// How long a shard is left alone whose leadership could not be handed over: each attempt holds its proposals back.
const HAND_OVER_AGAIN: Duration = Duration::from_secs(60);
/// Hand-overs to preferred nodes in one round, so that a returning node is not flooded.
const RETURNS_MAX: usize = 4;

/// What the controller works with.
pub struct Controller {
    /// This node.
    pub me: NodeId,
    /// The other nodes.
    pub peers: Arc<dyn Peers>,
    /// The replicas here.
    pub replicas: Arc<Replicas>,
    /// The way to the meta shard, and where shards live.
    pub router: Arc<Router>,
    /// Where readings go.
    pub vitals: Arc<Vitals>,
    /// The wall clock.
    pub wall: WallClock,
    /// How far this node's clock may be from the majority's, milliseconds.
    pub clock_offset_max_ms: u64,
    /// Whether this node's disk is below its reserve.
    pub disk_low: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Hears that this node's clock is off, or no longer.
    pub clock_warning: Arc<dyn Fn(Option<String>) + Send + Sync>,
    /// What this cluster was created with; the meta shard's leader records it there.
    pub plan: Plan,
    /// What the meta shard is to know of this node: its name, its addresses, what it understands.
    pub record: NodeRecord,
    /// Hears of the cluster as the meta shard has it.
    pub cluster_changed: Arc<dyn Fn(ClusterState) + Send + Sync>,
}

impl Controller {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refreshed: Option<Instant> = None;
        let mut refused: BTreeMap<ShardId, Instant> = BTreeMap::new();
        let mut well: BTreeMap<NodeId, Instant> = BTreeMap::new();
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.read_clocks().await;
            (self.clock_warning)(self.clock_is_off().then(|| {
                "the wall clock is far from the majority's: this node leads nothing; set its clock".to_owned()
            }));
            self.record_founding().await;
            self.announce().await;
            if refreshed.is_none_or(|at| at.elapsed() >= REFRESH) {
                self.refresh().await;
                refreshed = Some(Instant::now());
            }
            for node in self.router.placement().nodes().keys() {
                // It would shed at once what it got.
                let right = self.vitals.clock_within(*node, self.clock_offset_max_ms);
                match right && self.vitals.may_lead(*node) {
                    true => drop(well.entry(*node).or_insert_with(Instant::now)),
                    false => drop(well.remove(node)),
                }
            }
            let settled = |node: NodeId| {
                well.get(&node)
                    .is_some_and(|since| since.elapsed() >= SETTLED)
            };
            refused.retain(|_, at| at.elapsed() < HAND_OVER_AGAIN);
            self.move_leaders(settled, &mut refused).await;
        }
    }

    async fn read_clocks(&self) {
        let placement = self.router.placement();
        let others: Vec<NodeId> = placement
            .nodes()
            .keys()
            .copied()
            .filter(|node| *node != self.me)
            .collect();
        let readings = others.iter().map(|node| async {
            let asked = Instant::now();
            let ask = Request {
                request: Some(request::Request::Clock(ClockRequest {})),
            };
            let answer = self
                .peers
                .call(*node, Lane::Control, CLOCK_WITHIN, ask)
                .await
                .ok()?;
            let Some(response::Response::Clock(clock)) = answer.response else {
                return None;
            };
            // It was read about half a round trip ago, which CLOCK_WITHIN bounds.
            let way_back = u64::try_from(asked.elapsed().as_millis() / 2).unwrap_or(0);
            let reading = Reading {
                wall_ms: clock.wall_ms.saturating_add(way_back),
                disk_low: clock.disk_low,
                leaving: clock.leaving,
            };
            self.vitals.note(*node, reading, (self.wall)());
            Some(())
        });
        futures::future::join_all(readings).await;
        let nodes = placement.nodes().len();
        if let Some(offset_ms) = self.vitals.clock_offset_ms(nodes, (self.wall)()) {
            metrics::CLOCK_OFFSET
                .handle()
                .set(offset_ms as f64 / 1_000.0);
        }
    }

    /// Whether this node's clock is far from that of a majority.
    fn clock_is_off(&self) -> bool {
        let nodes = self.router.placement().nodes().len();
        self.vitals
            .clock_offset_ms(nodes, (self.wall)())
            .is_some_and(|offset| offset.unsigned_abs() > self.clock_offset_max_ms)
    }

    /// The meta shard's first command: until it is applied, the shard knows nothing of its cluster.
    async fn record_founding(&self) {
        let Some(meta) = self
            .replicas
            .get(ShardId::META)
            .filter(|meta| meta.serves())
        else {
            return;
        };
        let view = meta.view();
        let recorded =
            value::get::<ClusterState>(view.store().as_ref(), &Key::Cluster(view.home()));
        if let Ok(None) = recorded {
            let found = command::Command::Found(Found {
                plan: Some(self.plan.clone()),
            });
            // Tried again in the next round, here or at the next leader.
            let _ = meta.propose(found).await;
        }
    }

    /// This node is called otherwise, or somewhere else, or another build, than the meta shard says.
    async fn announce(&self) {
        if self.router.placement().nodes().get(&self.me) == Some(&self.record) {
            return;
        }
        let update = command::Command::UpdateNode(UpdateNode {
            node: Some(self.record.clone()),
        });
        match self.router.propose(ShardId::META, update, TICK).await {
            Ok(Outcome {
                outcome: Some(outcome::Outcome::Done(_)),
            }) => {
                tracing::info!(
                    name = self.record.name,
                    address = self.record.peer_address,
                    "announced"
                );
                self.refresh().await;
            }
            // Again in the next round.
            other => tracing::debug!(
                ?other,
                "the meta shard does not hear of this node's addresses yet"
            ),
        }
    }

    async fn refresh(&self) {
        let ask = shard_request::Request::ReadCluster(ReadCluster {});
        // Tried again soon; until then the node goes on with what it knows.
        if let Ok(shard_response::Response::Cluster(cluster)) =
            self.router.request(ShardId::META, ask, TICK).await
        {
            (self.cluster_changed)(cluster);
        }
    }

    async fn move_leaders(
        &self,
        settled: impl Fn(NodeId) -> bool,
        refused: &mut BTreeMap<ShardId, Instant>,
    ) {
        let sheds = (self.disk_low)() || self.clock_is_off();
        // A node that refuses messages lets go of everything at once.
        let most = if sheds { usize::MAX } else { RETURNS_MAX };
        let mut moved = 0;
        for replica in self.replicas.all() {
            let shard = replica.shard();
            // Whoever refuses messages has none that another attempt would hold back.
            let left_alone = !sheds && refused.contains_key(&shard);
            if moved == most || !replica.serves() || left_alone {
                continue;
            }
            let Some((id, node)) = self.better_leader(&replica, sheds, &settled) else {
                continue;
            };
            moved += 1;
            let handed = replica.hand_over(&*self.peers, node, id).await;
            if handed.is_err() {
                refused.insert(shard, Instant::now());
            }
            tracing::info!(%shard, %node, ok = handed.is_ok(), "leadership handed over");
        }
    }

    fn better_leader(
        &self,
        replica: &Replica,
        sheds: bool,
        settled: impl Fn(NodeId) -> bool,
    ) -> Option<(ReplicaId, NodeId)> {
        let placement = self.router.placement();
        let state = replica.group().state();
        let state = state.borrow();
        // Whoever refuses messages does not wait until others have been well for long.
        let well = |node: NodeId| match sheds {
            true => self.vitals.may_lead(node),
            false => settled(node),
        };
        let fit = |(id, node): &&(ReplicaId, NodeId)| {
            *node != self.me
                && well(*node)
                && replica.group().hears(*id)
                && state.nearly_caught_up(*id)
                && state.voters.contains(id)
        };
        let replicas = placement.replicas(replica.shard());
        match sheds {
            true => replicas.iter().find(fit).copied(),
            // A node that may not lead is not preferred either: it would shed at once.
            false => replicas
                .first()
                .filter(|first| first.1 != self.me)
                .filter(fit)
                .copied(),
        }
    }
}

/// Hands over everything that this node leads, to whoever is fit, before it stops.
pub async fn hand_over_all(me: NodeId, replicas: &Replicas, router: &Router, peers: &dyn Peers) {
    let placement = router.placement();
    let hand_overs = replicas.all().into_iter().map(|replica| {
        let placement = Arc::clone(&placement);
        async move {
            let candidates = placement.replicas(replica.shard()).to_vec();
            for (id, node) in candidates {
                let fit = node != me && replica.group().state().borrow().nearly_caught_up(id);
                if fit && replica.serves() && replica.hand_over(peers, node, id).await.is_ok() {
                    return;
                }
            }
        }
    });
    futures::future::join_all(hand_overs).await;
}
