//! All nodes of one cluster: started together, watched, stopped together.

use std::fs;
use std::future::{Future, poll_fn};
use std::process::ExitStatus;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::{Config, Error, Node};

/// The nodes of one cluster on this host. Dropping it kills them.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts every node and waits until each says that it is ready.
    ///
    /// # Errors
    ///
    /// When a port is in use, a process does not start, or a node is not ready in time; no node is left running.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let mut cluster = Self::prepare(config)?;
        cluster.start_all()?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Describes the cluster and makes its directory, and starts nothing.
    ///
    /// # Errors
    ///
    /// When no cluster can be as the config says.
    pub fn prepare(config: Config) -> Result<Self, Error> {
        let config = Arc::new(config.checked()?);
        fs::create_dir_all(&config.data_dir).map_err(Error::file(&config.data_dir))?;
        let nodes = (1..=config.nodes)
            .map(|k| Node::new(Arc::clone(&config), k))
            .collect();
        Ok(Self { nodes })
    }

    /// Starts every node that is not running, after a look at all their ports, and waits for none.
    ///
    /// # Errors
    ///
    /// When a port is in use or a process does not start.
    pub fn start_all(&mut self) -> Result<(), Error> {
        let mut stopped: Vec<&mut Node> = self.stopped().collect();
        stopped.iter().try_for_each(|node| node.check_ports())?;
        stopped.iter_mut().try_for_each(|node| node.start())
    }

    fn stopped(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes
            .iter_mut()
            .filter_map(|node| (!node.is_running()).then_some(node))
    }

    fn running(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes
            .iter_mut()
            .filter_map(|node| node.is_running().then_some(node))
    }

    /// Waits until every node says that it is ready, each as long as the config allows.
    ///
    /// # Errors
    ///
    /// With the end of the log of the first that ends or takes too long.
    pub async fn wait_ready(&mut self) -> Result<(), Error> {
        for node in &mut self.nodes {
            node.wait_ready().await?;
        }
        Ok(())
    }

    /// All nodes, in the order of their numbers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Node `k`, counted from 1.
    ///
    /// # Panics
    ///
    /// When there is no such node.
    pub fn node(&self, k: u16) -> &Node {
        &self.nodes[self.place(k)]
    }

    /// Node `k`, counted from 1, to do something to it.
    ///
    /// # Panics
    ///
    /// When there is no such node.
    pub fn node_mut(&mut self, k: u16) -> &mut Node {
        let place = self.place(k);
        &mut self.nodes[place]
    }

    fn place(&self, k: u16) -> usize {
        let nodes = self.nodes.len();
        assert!(
            (1..=nodes).contains(&usize::from(k)),
            "there is no node {k} of {nodes}"
        );
        usize::from(k) - 1
    }

    /// The URLs on which the nodes serve clients.
    pub fn client_urls(&self) -> Vec<String> {
        self.nodes.iter().map(Node::client_url).collect()
    }

    /// The administrator's token that cluster creation left with its nodes.
    ///
    /// # Errors
    ///
    /// When no node has one.
    pub fn admin_token(&self) -> Result<String, Error> {
        let files: Vec<_> = self.nodes.iter().map(Node::admin_token_file).collect();
        let file = files.iter().find(|file| file.exists()).unwrap_or(&files[0]);
        let token = fs::read_to_string(file).map_err(Error::file(file))?;
        Ok(token.trim().to_owned())
    }

    /// Waits until the process of any node ends by itself, and says whose and how; for ever when none runs. An end is
    /// told once, however early it came; one that [`Node::kill`] or [`Node::terminate`] waited for is not told. May be
    /// dropped and called again.
    ///
    /// # Errors
    ///
    /// When the system does not say.
    pub async fn next_exit(&mut self) -> Result<(u16, ExitStatus), Error> {
        let watched = self.nodes.iter_mut().filter(|node| node.has_process());
        let mut waits: Vec<_> = watched
            .map(|node| (node.number(), Box::pin(node.wait())))
            .collect();
        poll_fn(|context| {
            for (k, wait) in &mut waits {
                if let Poll::Ready(status) = wait.as_mut().poll(context) {
                    return Poll::Ready(status.map(|status| (*k, status)));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// SIGTERM to every running node at once, then waits; whoever takes longer than `grace` is killed.
    ///
    /// # Errors
    ///
    /// When a process cannot be signalled.
    pub async fn stop(&mut self, grace: Duration) -> Result<(), Error> {
        let mut running: Vec<&mut Node> = self.running().collect();
        running.iter().try_for_each(|node| node.send_terminate())?;
        let deadline = Instant::now() + grace;
        for node in &mut running {
            if timeout_at(deadline, node.wait()).await.is_err() {
                node.kill().await?;
            }
        }
        Ok(())
    }

    /// SIGKILL to every running node, and waits until all are gone: what is left is what they had written.
    ///
    /// # Errors
    ///
    /// When a process cannot be signalled.
    pub async fn kill_all(&mut self) -> Result<(), Error> {
        let mut running: Vec<&mut Node> = self.running().collect();
        running.iter().try_for_each(|node| node.send_kill())?;
        for node in &mut running {
            node.wait().await?;
        }
        Ok(())
    }
}
