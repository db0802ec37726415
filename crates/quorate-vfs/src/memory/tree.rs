//! Names: directories, files and symlinks, as processes see them and as the device holds them.
//!
//! A name change is a set of slots (a name in a directory, and what it means from then on) that
//! comes into force at once. Changes wait in a journal until one of their directories is synced.
//!
//! # Invariants
//! - Replaying the whole journal over what the device holds gives what is seen.
//! - Of the changes that touch a directory the device holds a prefix.
//! - A node lives while a name that is seen, held or in the journal leads to it, or a handle does.

use super::contents::Contents;
use super::random::SplitMix;
use super::sharing::Sharing;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Weak;

/// Names a node while it lives.
pub(super) type NodeId = usize;

pub(super) const ROOT: NodeId = 0;

/// As many as Linux follows.
const LINKS_MAX: usize = 40;

/// Linux's number for too many symlinks; its [`io::ErrorKind`] is not stable.
const ELOOP: i32 = 40;

#[derive(Debug, Clone)]
pub(super) enum Node {
    /// Nobody's, to be taken by the next new one.
    Free,
    Directory(Directory),
    File(File),
    Link(PathBuf),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Directory {
    seen: BTreeMap<String, NodeId>,
    held: BTreeMap<String, NodeId>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct File {
    pub(super) contents: Contents,
    /// Whether a name that is seen leads here.
    pub(super) linked: bool,
    /// Handles of living processes.
    pub(super) open: usize,
    /// Whether reads fail.
    pub(super) unreadable: bool,
    /// What SQLite's connections to this file share, while there are any.
    pub(super) sharing: Weak<Sharing>,
}

impl File {
    /// Whether its bytes count as used room.
    pub(super) fn counts(&self) -> bool {
        self.linked || self.open > 0
    }
}

#[derive(Debug, Clone)]
struct NameChange {
    slots: Vec<Slot>,
}

#[derive(Debug, Clone)]
struct Slot {
    directory: NodeId,
    name: String,
    means: Option<NodeId>,
}

#[derive(Debug, Clone)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    journal: Vec<NameChange>,
}

/// Where a path leads.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: NodeId,
    /// Empty for the root and for a path that ends with `..`.
    pub(super) name: String,
    pub(super) node: Option<NodeId>,
    /// The same place without symlinks.
    pub(super) path: PathBuf,
}

impl Tree {
    pub(super) fn new() -> Tree {
        Tree { nodes: vec![Node::Directory(Directory::default())], free: Vec::new(), journal: Vec::new() }
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    pub(super) fn file(&self, id: NodeId) -> io::Result<&File> {
        match &self.nodes[id] {
            Node::File(file) => Ok(file),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn file_mut(&mut self, id: NodeId) -> io::Result<&mut File> {
        match &mut self.nodes[id] {
            Node::File(file) => Ok(file),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        self.nodes.iter().filter_map(|node| match node {
            Node::File(file) => Some(file),
            _ => None,
        })
    }

    pub(super) fn files_mut(&mut self) -> impl Iterator<Item = &mut File> {
        self.nodes.iter_mut().filter_map(|node| match node {
            Node::File(file) => Some(file),
            _ => None,
        })
    }

    fn directory(&self, id: NodeId) -> io::Result<&Directory> {
        match &self.nodes[id] {
            Node::Directory(directory) => Ok(directory),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn directory_mut(&mut self, id: NodeId) -> &mut Directory {
        match &mut self.nodes[id] {
            Node::Directory(directory) => directory,
            _ => unreachable!("slots name directories"),
        }
    }

    pub(super) fn names(&self, id: NodeId) -> io::Result<&BTreeMap<String, NodeId>> {
        self.directory(id).map(|directory| &directory.seen)
    }

    /// Follows a path; its last name, too, when `follow` says so.
    pub(super) fn place(&self, path: &Path, follow: bool) -> io::Result<Place> {
        let mut pending = Vec::new();
        push(&mut pending, path)?;
        let mut above: Vec<(String, NodeId)> = Vec::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                above.pop();
                continue;
            }
            let directory = above.last().map_or(ROOT, |(_, id)| *id);
            let node = self.directory(directory)?.seen.get(&name).copied();
            let last = pending.is_empty();
            match node.map(|id| (id, &self.nodes[id])) {
                Some((_, Node::Link(target))) if follow || !last => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(io::Error::from_raw_os_error(ELOOP));
                    }
                    if target.is_absolute() {
                        above.clear();
                    }
                    push(&mut pending, target)?;
                }
                _ if last => {
                    let path = joined(&above).join(&name);
                    return Ok(Place { directory, name, node, path });
                }
                Some((id, Node::Directory(_))) => above.push((name, id)),
                Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
                None => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        let directory = above.last().map_or(ROOT, |(_, id)| *id);
        Ok(Place { directory, name: String::new(), node: Some(directory), path: joined(&above) })
    }

    /// What a path leads to.
    pub(super) fn find(&self, path: &Path) -> io::Result<NodeId> {
        self.place(path, true)?.node.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A node that no name leads to yet.
    pub(super) fn add(&mut self, node: Node) -> NodeId {
        match self.free.pop() {
            Some(id) => {
                self.nodes[id] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    pub(super) fn add_directory(&mut self) -> NodeId {
        self.add(Node::Directory(Directory::default()))
    }

    /// Gives a name in a directory a meaning, or none.
    pub(super) fn set(&mut self, directory: NodeId, name: String, means: Option<NodeId>) {
        self.change(vec![Slot { directory, name, means }]);
    }

    pub(super) fn rename(&mut self, from: Place, to: Place) -> io::Result<()> {
        let moved = from.node.ok_or(io::ErrorKind::NotFound)?;
        if from.name.is_empty() || to.name.is_empty() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let moves_directory = matches!(self.nodes[moved], Node::Directory(_));
        if moves_directory && to.path != from.path && to.path.starts_with(&from.path) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if from.path != to.path && from.path.starts_with(&to.path) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        if let Some(replaced) = to.node {
            if replaced == moved {
                return Ok(());
            }
            match (&self.nodes[replaced], moves_directory) {
                (Node::Directory(_), false) => return Err(io::ErrorKind::IsADirectory.into()),
                (Node::Directory(old), true) if !old.seen.is_empty() => {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                (Node::File(_) | Node::Link(_), true) => return Err(io::ErrorKind::NotADirectory.into()),
                _ => {}
            }
        }
        self.change(vec![
            Slot { directory: from.directory, name: from.name, means: None },
            Slot { directory: to.directory, name: to.name, means: Some(moved) },
        ]);
        Ok(())
    }

    fn change(&mut self, slots: Vec<Slot>) {
        for slot in &slots {
            let before = match slot.means {
                Some(id) => self.directory_mut(slot.directory).seen.insert(slot.name.clone(), id),
                None => self.directory_mut(slot.directory).seen.remove(&slot.name),
            };
            for (id, linked) in before.map(|id| (id, false)).into_iter().chain(slot.means.map(|id| (id, true))) {
                if let Node::File(file) = &mut self.nodes[id] {
                    file.linked = linked;
                }
            }
        }
        self.journal.push(NameChange { slots });
    }

    /// Makes all changes of a directory durable, and those of others that they depend on.
    pub(super) fn sync(&mut self, directory: NodeId) -> io::Result<()> {
        self.directory(directory)?;
        let mut touched = BTreeSet::from([directory]);
        let mut durable = Vec::new();
        for (position, change) in self.journal.iter().enumerate().rev() {
            if change.slots.iter().any(|slot| touched.contains(&slot.directory)) {
                touched.extend(change.slots.iter().map(|slot| slot.directory));
                durable.push(position);
            }
        }
        let mut replaced = false;
        for &position in durable.iter().rev() {
            let slots = std::mem::take(&mut self.journal[position].slots);
            replaced |= self.hold(slots);
        }
        self.journal.retain(|change| !change.slots.is_empty());
        if replaced {
            self.sweep();
        }
        Ok(())
    }

    /// The device takes a change; whether a name had another meaning there.
    fn hold(&mut self, slots: Vec<Slot>) -> bool {
        let mut replaced = false;
        for slot in slots {
            let held = &mut self.directory_mut(slot.directory).held;
            let before = match slot.means {
                Some(id) => held.insert(slot.name, id),
                None => held.remove(&slot.name),
            };
            replaced |= before.is_some();
        }
        replaced
    }

    /// The power goes: of each directory's changes a random prefix survives.
    pub(super) fn crash(&mut self, random: &mut SplitMix) {
        let mut left: BTreeMap<NodeId, u64> = BTreeMap::new();
        for slot in self.journal.iter().flat_map(|change| &change.slots) {
            *left.entry(slot.directory).or_default() += 1;
        }
        for left in left.values_mut() {
            *left = random.below(*left + 1);
        }
        for change in std::mem::take(&mut self.journal) {
            let survives = change.slots.iter().all(|slot| left[&slot.directory] > 0);
            for slot in &change.slots {
                let left = left.entry(slot.directory).or_default();
                *left = if survives { left.saturating_sub(1) } else { 0 };
            }
            if survives {
                self.hold(change.slots);
            }
        }
        for node in &mut self.nodes {
            match node {
                Node::Directory(directory) => directory.seen.clone_from(&directory.held),
                Node::File(_) | Node::Link(_) | Node::Free => {}
            }
        }
        let reachable = self.reachable();
        for (node, reachable) in self.nodes.iter_mut().zip(reachable) {
            if let Node::File(file) = node {
                file.linked = reachable;
            }
        }
    }

    /// Frees what nothing leads to any more.
    pub(super) fn sweep(&mut self) {
        let reachable = self.reachable();
        for (id, (node, reachable)) in self.nodes.iter_mut().zip(reachable).enumerate() {
            let open = matches!(node, Node::File(file) if file.open > 0);
            if !open && !reachable && !matches!(node, Node::Free) {
                *node = Node::Free;
                self.free.push(id);
            }
        }
    }

    /// For each node whether a name leads to it.
    fn reachable(&self) -> Vec<bool> {
        let journal = self.journal.iter().flat_map(|change| &change.slots);
        let mut pending: Vec<NodeId> = journal.flat_map(|slot| [Some(slot.directory), slot.means]).flatten().collect();
        pending.push(ROOT);
        let mut reachable = vec![false; self.nodes.len()];
        while let Some(id) = pending.pop() {
            if std::mem::replace(&mut reachable[id], true) {
                continue;
            }
            if let Node::Directory(directory) = &self.nodes[id] {
                pending.extend(directory.seen.values().chain(directory.held.values()));
            }
        }
        reachable
    }

    /// A tree of its own that looks the same, all of it durable.
    pub(super) fn copy(&self) -> Tree {
        let mut copy = self.clone();
        copy.journal.clear();
        for node in &mut copy.nodes {
            match node {
                Node::Directory(directory) => directory.held.clone_from(&directory.seen),
                Node::File(file) => {
                    let contents = Contents::synced(file.contents.seen().to_vec());
                    *file = File { contents, linked: file.linked, ..File::default() };
                }
                Node::Link(_) | Node::Free => {}
            }
        }
        copy.sweep();
        copy
    }
}

/// Puts a path's names on a stack, the first on top.
fn push(pending: &mut Vec<String>, path: &Path) -> io::Result<()> {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => {
                let name = name.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
                pending.push(name.to_owned());
            }
            Component::ParentDir => pending.push("..".to_owned()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(())
}

fn joined(above: &[(String, NodeId)]) -> PathBuf {
    let mut path = PathBuf::from("/");
    path.extend(above.iter().map(|(name, _)| name));
    path
}
