//! What the leader looks at before it lets a command into the log.
//!
//! Whether a voter may go, or one more may vote, depends on who is heard now. No state machine knows that
//! and no follower knows it well, so the leader decides it, for commands from whichever node, at the moment
//! at which it proposes them. In place of one that would do harm it proposes the refusal, under the same
//! request id: that is how whoever asked gets the answer, and how it comes into the audit.
//!
//! What is already on its way is not looked at: two wishes that are granted at one moment can together ask
//! for more than either. The reconcile then carries out what those who are heard can commit, and no more.

use crate::electorate::{Electorate, Wish, judge};
use crate::event::Now;
use crate::node::Node;
use quorate_model::command::{Command, Refusal};
use quorate_model::drill::DrillCommand;
use quorate_model::entry::{Kind, Proposal};
use quorate_model::member::managers::Harm;
use quorate_model::member::{MemberCommand, Vote};
use quorate_model::state::{Health, NodeIdentity, NodeRecord, Role};
use quorate_model::time::WallTime;

/// Why the leader does not let this in.
pub(crate) fn objection(proposal: &Proposal, leader: &Node, now: Now) -> Option<Refusal> {
    if proposal.kind != Kind::Command {
        return None;
    }
    // What cannot be read is refused by whoever applies it.
    let command = match serde_json::from_slice(&proposal.payload) {
        Ok(Command::Member(command)) => command,
        Ok(Command::Drill(DrillCommand::Begin { node, .. })) => return leader.objects_to_drill(node),
        Ok(_) | Err(_) => return None,
    };
    // Who is heard lives, whatever is decided of it.
    if let MemberCommand::ConfirmDead { node, .. } = command
        && leader.hears(node)
    {
        let name = leader.state().nodes.get(&node).map(|record| record.identity.name.clone());
        return Some(Refusal::NodeLives { node: name.unwrap_or_else(|| node.to_string()) });
    }
    let harm = leader.with_electorate(now, |seen| harm_of(&command, seen)).err()?;
    Some(Refusal::Harm { harm })
}

fn harm_of(command: &MemberCommand, seen: &Electorate<'_>) -> Result<(), Harm> {
    match command {
        MemberCommand::Expel { node } if seen.nodes.contains_key(node) => judge(seen, Wish::Expel(*node)),
        MemberCommand::SetVote { node, vote: Vote::Never } => judge(seen, Wish::StopVoting(*node)),
        MemberCommand::SetVote { node, vote: Vote::Asked } => judge(seen, Wish::AskVote(*node)),
        MemberCommand::SetRoles { node, roles } if !roles.contains(&Role::Manager) => {
            judge(seen, Wish::StopVoting(*node))
        }
        MemberCommand::StopManagers { nodes } => judge(seen, Wish::Stop(nodes)),
        MemberCommand::Admit { node, vote: Vote::Asked, .. } if node.roles.contains(&Role::Manager) => {
            judge_newcomer(seen, node)
        }
        MemberCommand::Expel { .. }
        | MemberCommand::SetVote { vote: Vote::Auto, .. }
        | MemberCommand::SetRoles { .. }
        | MemberCommand::Admit { .. }
        | MemberCommand::CutOff { .. }
        | MemberCommand::CreateToken { .. }
        | MemberCommand::RevokeToken { .. }
        | MemberCommand::HandOver { .. }
        | MemberCommand::ConfirmDead { .. }
        | MemberCommand::Leave { .. }
        | MemberCommand::SetAlias { .. }
        | MemberCommand::SetLabels { .. }
        | MemberCommand::SetAttribute { .. }
        | MemberCommand::SetAvailability { .. }
        | MemberCommand::SetQuota { .. }
        | MemberCommand::StartManagers { .. }
        | MemberCommand::RestartServer { .. }
        | MemberCommand::SetManagerRule { .. }
        | MemberCommand::SetHa { .. }
        | MemberCommand::SetFailover { .. }
        | MemberCommand::Recover { .. } => Ok(()),
    }
}

/// A server that asks for a vote and for admission at once.
fn judge_newcomer(seen: &Electorate<'_>, node: &NodeIdentity) -> Result<(), Harm> {
    let mut nodes = seen.nodes.clone();
    let record = || NodeRecord::started(node.clone(), Health::Joined, WallTime::default());
    nodes.entry(node.id).or_insert_with(record);
    judge(&Electorate { nodes: &nodes, ..seen.clone() }, Wish::AskVote(node.id))
}
