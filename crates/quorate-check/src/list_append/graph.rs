//! Which transaction came before which, and whether that goes in a circle.
//!
//! Real time alone would be an edge for nearly every pair. Instead the answers are a chain of nodes
//! of their own in the order of time: a transaction leads to the node of its answer, and the last
//! node before a question leads to the transaction that was asked. A path along the chain is shown
//! as one step and counts as one.

use crate::history::Moment;
use std::collections::VecDeque;
use std::fmt;

/// Why one came before the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It appended before the other appended.
    Ww,
    /// The other saw what it appended.
    Wr,
    /// It did not see what the other appended.
    Rw,
    /// It was answered before the other was asked.
    RealTime,
    /// Along or out of the chain of answers: the rest of a step that began with `RealTime`.
    Chain,
}

impl Kind {
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of kinds.
#[derive(Debug, Clone, Copy)]
struct Kinds(u8);

impl Kinds {
    const WRITES: Kinds = Kinds(Kind::Ww.bit());
    const FLOW: Kinds = Kinds(Kind::Ww.bit() | Kind::Wr.bit());
    const ALL: Kinds = Kinds(Kinds::FLOW.0 | Kind::Rw.bit());

    const fn with_time(self) -> Kinds {
        Kinds(self.0 | Kind::RealTime.bit() | Kind::Chain.bit())
    }

    fn has(self, kind: Kind) -> bool {
        self.0 & kind.bit() != 0
    }
}

#[derive(Debug)]
pub(super) struct Graph {
    /// From each node: first the transactions, then the chain.
    edges: Vec<Vec<(usize, Kind)>>,
    transactions: usize,
}

/// A circle: each transaction and why it came before the next one; the last before the first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cycle {
    name: &'static str,
    steps: Vec<(usize, Kind)>,
}

impl Cycle {
    pub(super) fn transactions(&self) -> Vec<usize> {
        self.steps.iter().map(|(transaction, _)| *transaction).collect()
    }
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.name)?;
        for (transaction, kind) in &self.steps {
            let why = match kind {
                Kind::Ww => "appended before",
                Kind::Wr => "was seen by",
                Kind::Rw => "did not see",
                Kind::RealTime | Kind::Chain => "was answered before the question of",
            };
            write!(f, " {transaction} {why}")?;
        }
        write!(f, " {}", self.steps[0].0)
    }
}

/// So many searches for a short circle of one name are made; enough for any but a history in ruins,
/// in which a longer circle, or `G2` where a `G-single` is hidden, is as good.
const SEARCHES_MAX: usize = 500;

impl Graph {
    pub(super) fn new(transactions: usize) -> Self {
        Graph { edges: vec![Vec::new(); transactions], transactions }
    }

    /// Nothing comes before itself: such an edge is left out.
    pub(super) fn add(&mut self, from: usize, kind: Kind, to: usize) {
        if from != to {
            self.edges[from].push((to, kind));
        }
    }

    /// For each transaction when it was asked and when it was answered, if it was. Once, after `new`
    /// and in the order of the transactions.
    pub(super) fn add_real_time(&mut self, spans: impl Iterator<Item = (Moment, Option<Moment>)>) {
        let (mut asked, mut answered) = (Vec::new(), Vec::new());
        for (transaction, (question, answer)) in spans.enumerate() {
            asked.push((question, transaction));
            answered.extend(answer.map(|answer| (answer, transaction)));
        }
        asked.sort_unstable();
        answered.sort_unstable();
        let mut answered = answered.into_iter().peekable();
        let mut last: Option<usize> = None;
        for (question, transaction) in asked {
            while let Some((_, before)) = answered.next_if(|(answer, _)| *answer < question) {
                let node = self.edges.len();
                self.edges.push(Vec::new());
                self.edges[before].push((node, Kind::RealTime));
                if let Some(last) = last {
                    self.edges[last].push((node, Kind::Chain));
                }
                last = Some(node);
            }
            if let Some(last) = last {
                self.edges[last].push((transaction, Kind::Chain));
            }
        }
    }

    /// How many dependencies there are besides real time.
    pub(super) fn dependencies(&self) -> u64 {
        self.edges.iter().flatten().filter(|(_, kind)| Kinds::ALL.has(*kind)).count() as u64
    }

    /// The gravest circle, if there is one: those without real time first, those with fewer kinds of
    /// steps first.
    pub(super) fn cycle(&self) -> Option<Cycle> {
        self.components(Kinds::ALL.with_time()).circular()?;
        None.or_else(|| self.shortest("G0 (write cycle)", Kinds::WRITES))
            .or_else(|| self.shortest("G1c (circular information flow)", Kinds::FLOW))
            .or_else(|| self.single("G-single (read skew)", Kinds::FLOW))
            .or_else(|| self.shortest("G2 (anti-dependency cycle)", Kinds::ALL))
            .or_else(|| self.shortest("G0-realtime", Kinds::WRITES.with_time()))
            .or_else(|| self.shortest("G1c-realtime", Kinds::FLOW.with_time()))
            .or_else(|| self.single("G-single-realtime", Kinds::FLOW.with_time()))
            .or_else(|| self.shortest("G2-realtime", Kinds::ALL.with_time()))
    }

    /// A shortest circle of these kinds.
    fn shortest(&self, name: &'static str, kinds: Kinds) -> Option<Cycle> {
        let components = self.components(kinds);
        components.circular()?;
        (0..self.transactions)
            .filter(|&from| components.is_circular(from))
            .take(SEARCHES_MAX)
            .filter_map(|from| self.path(from, from, kinds, &components))
            .min_by_key(Vec::len)
            .map(|steps| Cycle { name, steps })
    }

    /// A shortest circle with one `Rw` and otherwise these kinds.
    fn single(&self, name: &'static str, kinds: Kinds) -> Option<Cycle> {
        let components = self.components(Kinds(kinds.0 | Kind::Rw.bit()));
        components.circular()?;
        let missed = (0..self.transactions).flat_map(|from| self.edges[from].iter().map(move |edge| (from, *edge)));
        missed
            .filter(|(from, (to, kind))| *kind == Kind::Rw && components.of[*from] == components.of[*to])
            .take(SEARCHES_MAX)
            .filter_map(|(from, (to, kind))| {
                let mut steps = vec![(from, kind)];
                steps.extend(self.path(to, from, kinds, &components)?);
                Some(steps)
            })
            .min_by_key(Vec::len)
            .map(|steps| Cycle { name, steps })
    }

    /// The shortest way between two transactions of one component: every transaction on it but the
    /// last, with the kind of the step out of it.
    fn path(&self, from: usize, to: usize, kinds: Kinds, components: &Components) -> Option<Vec<(usize, Kind)>> {
        let mut reached: Vec<Option<(usize, Kind)>> = vec![None; self.edges.len()];
        let mut lengths = vec![usize::MAX; self.edges.len()];
        // Steps along the chain cost nothing, so they are taken before all others.
        let mut queue = VecDeque::from([(0, from)]);
        while let Some((length, node)) = queue.pop_front() {
            if node == to && reached[to].is_some() {
                return Some(self.walk_back(from, to, &reached));
            }
            for &(next, kind) in &self.edges[node] {
                let length = length + usize::from(kind != Kind::Chain);
                if kinds.has(kind) && length < lengths[next] && components.of[next] == components.of[from] {
                    lengths[next] = length;
                    reached[next] = Some((node, kind));
                    if kind == Kind::Chain { queue.push_front((length, next)) } else { queue.push_back((length, next)) }
                }
            }
        }
        None
    }

    fn walk_back(&self, from: usize, to: usize, reached: &[Option<(usize, Kind)>]) -> Vec<(usize, Kind)> {
        let mut steps = Vec::new();
        let mut node = to;
        while let Some((before, kind)) = reached[node] {
            if before < self.transactions {
                steps.push((before, kind));
            }
            if before == from {
                break;
            }
            node = before;
        }
        steps.reverse();
        steps
    }

    /// Tarjan's strongly connected components, without recursion: a history is longer than a stack.
    fn components(&self, kinds: Kinds) -> Components {
        const NONE: usize = usize::MAX;
        let count = self.edges.len();
        let (mut of, mut sizes) = (vec![NONE; count], Vec::new());
        let (mut number, mut low) = (vec![NONE; count], vec![0; count]);
        let (mut open, mut visits) = (Vec::new(), Vec::new());
        let mut numbered = 0;
        for root in 0..count {
            if number[root] != NONE {
                continue;
            }
            visits.push((root, 0));
            while let Some((node, edge)) = visits.pop() {
                if edge == 0 {
                    (number[node], low[node]) = (numbered, numbered);
                    numbered += 1;
                    open.push(node);
                }
                if let Some(&(next, kind)) = self.edges[node].get(edge) {
                    visits.push((node, edge + 1));
                    if !kinds.has(kind) {
                    } else if number[next] == NONE {
                        visits.push((next, 0));
                    } else if of[next] == NONE {
                        low[node] = low[node].min(number[next]);
                    }
                    continue;
                }
                if low[node] == number[node] {
                    let mut size = 0;
                    while let Some(member) = open.pop() {
                        of[member] = sizes.len();
                        size += 1;
                        if member == node {
                            break;
                        }
                    }
                    sizes.push(size);
                }
                if let Some(&(parent, _)) = visits.last() {
                    low[parent] = low[parent].min(low[node]);
                }
            }
        }
        Components { of, sizes }
    }
}

/// Which component each node is in, and how many nodes each component has.
struct Components {
    of: Vec<usize>,
    sizes: Vec<usize>,
}

impl Components {
    /// No node leads to itself, so a circle is a component of several nodes.
    fn is_circular(&self, node: usize) -> bool {
        self.sizes[self.of[node]] > 1
    }

    fn circular(&self) -> Option<()> {
        self.sizes.iter().any(|size| *size > 1).then_some(())
    }
}
