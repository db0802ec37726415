//! Followers of the cluster's events, and the table that they are compared with.
//!
//! A follower reads the stream of one node (`GET /v1/stream`), takes the events that it has not
//! seen, and goes on at another node with what it has seen last. The stream shows the newest 50
//! events at each change, so a follower can tell by itself whether it missed any: when the oldest
//! of a full window is newer than the last one that it knows. That is written down and is no gap.

use crate::torture::reach::Node;
use crate::torture::record::{Event, Line, Watched};
use crate::torture::workload::client::{Client, Reply};
use crate::torture::workload::{Shared, sql};
use quorate_api::view::{EventView, Overview};
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

/// A connection is left after this time, so that followers meet every node in every state.
const CONNECTION: Duration = Duration::from_secs(8);
/// How long followers have for the last event after all has healed. It takes milliseconds.
const LAST_EVENT_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait for a piece of the table.
const ANSWER: Duration = Duration::from_secs(2);
/// After a connection that failed at once.
const PAUSE: Duration = Duration::from_millis(300);
/// How many events a window of the stream has at most.
const WINDOW: usize = 50;
/// How often the table of events is read. It keeps 2,000, far more than happen in this time.
const HISTORY_EVERY: Duration = Duration::from_secs(5);

/// Follows until it has seen the last event that it is to see, or had time enough for it.
pub(crate) fn follow(mut client: Client) {
    let mut after = 0;
    let mut give_up = None;
    loop {
        let node = any_node(&mut client);
        after = read_stream(&client, &node, after);
        if let Some(last) = client.shared.last_event() {
            let give_up = *give_up.get_or_insert_with(|| Instant::now() + LAST_EVENT_WITHIN);
            if after >= last || Instant::now() >= give_up {
                return client.shared.record.write(Line::CaughtUp { client: client.number, up_to: last });
            }
        }
        client.sleep(PAUSE, |_| false);
    }
}

fn any_node(client: &mut Client) -> Node {
    let nodes = client.shared.nodes();
    nodes[client.dice.below(nodes.len())].clone()
}

/// Reads one node's stream for as long as it lasts. Returns the last event that is known.
fn read_stream(client: &Client, node: &Node, mut after: u64) -> u64 {
    // However it ends, the next stream goes on from what is known.
    let Ok(stream) = client.open(node, "/v1/stream", CONNECTION) else { return after };
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { break };
        let Some(data) = line.strip_prefix("data: ") else {
            // A heartbeat: nothing is new. After the run this node may know less than others.
            if line.starts_with(':') && client.shared.last_event().is_some() {
                break;
            }
            continue;
        };
        // A line may be cut with its connection.
        let Ok(overview) = serde_json::from_str::<Overview>(data) else { break };
        let (missed, events) = fresh(&overview.events, after);
        if let Some(last) = events.last().map(|event| event.index) {
            let at = client.shared.record.now();
            let watched = Watched { client: client.number, node: node.name.clone(), at, after, missed, events };
            client.shared.record.write(Line::Watched(watched));
            after = last;
        }
        if client.shared.last_event().is_some_and(|last| after >= last) {
            break;
        }
    }
    after
}

/// The events of a window (newest first) that come after index `after`, oldest first; and whether
/// there may have been others between.
fn fresh(window: &[EventView], after: u64) -> (bool, Vec<Event>) {
    let oldest = window.last().map_or(0, |event| event.index.0);
    let full = window.len() >= WINDOW;
    let missed = full && oldest > after;
    let events = window
        .iter()
        .rev()
        // Of the oldest entry in a full window some events may be cut off.
        .filter(|event| event.index.0 > after && !(full && event.index.0 == oldest))
        .map(|event| Event { index: event.index.0, kind: event.kind.clone() })
        .collect();
    (missed, events)
}

/// Copies the cluster's own table of events into the record, as it grows.
pub(crate) fn keep_history(mut client: Client) {
    let mut position = 0;
    let mut give_up = None;
    loop {
        let complete = client.shared.table_complete();
        let node = any_node(&mut client);
        let read = read_history(&client, &node, &mut position);
        if complete {
            let give_up = *give_up.get_or_insert_with(|| Instant::now() + LAST_EVENT_WITHIN);
            if read == Some(0) || Instant::now() >= give_up {
                return;
            }
        } else {
            client.sleep(HISTORY_EVERY, Shared::table_complete);
        }
    }
}

/// Reads what is new in the table. How much that was; `None` if the node did not answer.
fn read_history(client: &Client, node: &Node, position: &mut u64) -> Option<usize> {
    let Reply::Answered(answer) = client.attempt(node, &sql::events_after(*position), None, ANSWER) else {
        return None;
    };
    let rows = sql::read_events(&answer)?;
    let count = rows.len();
    if let Some((last, _, _)) = rows.last() {
        *position = *last;
        let events = rows.into_iter().map(|(_, index, kind)| Event { index, kind }).collect();
        client.shared.record.write(Line::Events { events });
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::id::LogIndex;
    use quorate_model::time::WallTime;

    fn window(indexes: impl DoubleEndedIterator<Item = u64>) -> Vec<EventView> {
        let view = |index| EventView {
            index: LogIndex(index),
            at: WallTime(0),
            kind: "service-scaled".into(),
            text: String::new(),
            node: None,
            service: None,
        };
        indexes.rev().map(view).collect()
    }

    fn indexes(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.index).collect()
    }

    #[test]
    fn a_follower_takes_what_it_has_not_seen_in_its_order() {
        let (missed, events) = fresh(&window([3, 5, 5, 9].into_iter()), 3);
        assert_eq!((missed, indexes(&events)), (false, vec![5, 5, 9]));
        assert_eq!(fresh(&[], 3), (false, vec![]));
    }

    #[test]
    fn a_window_that_begins_later_says_that_something_was_missed() {
        let (missed, events) = fresh(&window(101..151), 60);
        assert!(missed);
        assert_eq!(indexes(&events), (102..151).collect::<Vec<_>>(), "the oldest entry may be cut");
        assert!(!fresh(&window(101..151), 101).0);
        assert!(!fresh(&window(101..131), 60).0, "a window that is not full is all there is");
    }
}
