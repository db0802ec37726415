//! Who may do what: the one place that decides it.
//!
//! An [`Operation`] is what a route of the API does; a [`Permission`] is what a role grants; a role
//! is a set of permissions. [`allow`] looks at nothing else. What is not granted is denied.

use super::name::{ApiTokenId, Digest, RoleName, UserName};
use super::{AccessState, RoleRecord};
use crate::entry::Database;
use crate::id::ReplicaId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// The word in JSON, the command line and the audit.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }

        impl FromStr for $name {
            type Err = super::name::BadName;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let found = $name::ALL.iter().copied().find(|known| known.word() == text);
                let what = concat!("one of:", $(" ", $word),+);
                found.ok_or_else(|| super::name::BadName { text: text.to_owned(), what })
            }
        }
    };
}

words!(
    /// What a role grants.
    Permission {
        ClusterRead = "cluster-read",
        /// Logs of services.
        LogRead = "log-read",
        /// Logs of nodes' servers, which name people's addresses and the paths of their files.
        NodeLogRead = "node-log-read",
        ServiceApply = "service-apply",
        ServiceScale = "service-scale",
        ServiceRemove = "service-remove",
        ManagerControl = "manager-control",
        MemberWrite = "member-write",
        SqlRead = "sql-read",
        SqlWrite = "sql-write",
        GatewayFeed = "gateway-feed",
        UserRead = "user-read",
        UserWrite = "user-write",
        RoleWrite = "role-write",
        SessionRead = "session-read",
        SessionRevoke = "session-revoke",
        TokenRead = "token-read",
        TokenRevoke = "token-revoke",
        AuditRead = "audit-read",
        /// Names of secrets; their values are read by nobody.
        SecretRead = "secret-read",
        SecretWrite = "secret-write",
    }
);

words!(
    /// What a route does. Its word stands in the audit and binds a confirmation.
    Operation {
        HealthRead = "health-read",
        LogIn = "log-in",
        WhoAmI = "who-am-i",
        LogOut = "log-out",
        Confirm = "confirm",
        OwnPassword = "own-password",
        OwnTokenRead = "own-token-read",
        OwnTokenCreate = "own-token-create",
        OwnTokenRevoke = "own-token-revoke",
        OwnSessionRead = "own-session-read",
        OwnSessionEnd = "own-session-end",
        ClusterRead = "cluster-read",
        LogRead = "log-read",
        NodeLogRead = "node-log-read",
        ServiceApply = "service-apply",
        ServiceScale = "service-scale",
        ServiceAutoscale = "service-autoscale",
        ServiceRestart = "service-restart",
        ServiceActivate = "service-activate",
        ServiceStop = "service-stop",
        ServiceStart = "service-start",
        Rebalance = "rebalance",
        ServiceRemove = "service-remove",
        VipAdd = "vip-add",
        VipRemove = "vip-remove",
        ExternalSet = "external-set",
        ExternalTest = "external-test",
        ExternalRemove = "external-remove",
        LeaderTransfer = "leader-transfer",
        NodeAlias = "node-alias",
        NodeLabel = "node-label",
        NodeAvailability = "node-availability",
        NodeVote = "node-vote",
        NodeRoles = "node-roles",
        NodeRemove = "node-remove",
        NodeConfirmDead = "node-confirm-dead",
        NodeDrill = "node-drill",
        NodeLeave = "node-leave",
        ManagerStop = "manager-stop",
        ManagerStart = "manager-start",
        ManagerRestart = "manager-restart",
        ActiveRestart = "active-restart",
        ManagerRule = "manager-rule",
        HaSet = "ha-set",
        JoinTokenRead = "join-token-read",
        JoinTokenCreate = "join-token-create",
        JoinTokenRevoke = "join-token-revoke",
        /// A server shows a join token, and nothing else.
        Join = "join",
        NodeRestart = "node-restart",
        Reconfigure = "reconfigure",
        QuotaSet = "quota-set",
        FailoverSet = "failover-set",
        /// A node shows its certificate, and nothing else.
        CertificateRenew = "certificate-renew",
        CertificateRotate = "certificate-rotate",
        SecretRead = "secret-read",
        SecretSet = "secret-set",
        SecretRemove = "secret-remove",
        SqlRead = "sql-read",
        SqlWrite = "sql-write",
        GatewayFeed = "gateway-feed",
        UserRead = "user-read",
        UserCreate = "user-create",
        UserPassword = "user-password",
        UserDisable = "user-disable",
        UserEnable = "user-enable",
        UserRemove = "user-remove",
        UserToken = "user-token",
        RoleRead = "role-read",
        RoleGrant = "role-grant",
        RoleRevoke = "role-revoke",
        RoleClone = "role-clone",
        RoleChange = "role-change",
        RoleRemove = "role-remove",
        SessionRead = "session-read",
        SessionRevoke = "session-revoke",
        TokenRead = "token-read",
        TokenRevoke = "token-revoke",
        AuditRead = "audit-read",
    }
);

/// What an operation asks of whoever wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// To be logged in as anybody, by whatever means.
    Login,
    /// To be a person and no program: API tokens are not enough.
    Person,
    Permission(Permission),
}

impl Operation {
    #[must_use]
    pub fn needs(self) -> Needs {
        use Operation as O;
        use Permission as P;
        match self {
            O::HealthRead | O::LogIn | O::Join | O::CertificateRenew => Needs::Nothing,
            O::WhoAmI => Needs::Login,
            O::LogOut | O::Confirm | O::OwnPassword => Needs::Person,
            O::OwnTokenRead | O::OwnTokenCreate | O::OwnTokenRevoke => Needs::Person,
            O::OwnSessionRead | O::OwnSessionEnd => Needs::Person,
            O::ClusterRead => Needs::Permission(P::ClusterRead),
            O::LogRead => Needs::Permission(P::LogRead),
            O::NodeLogRead => Needs::Permission(P::NodeLogRead),
            O::ServiceApply | O::VipAdd | O::VipRemove => Needs::Permission(P::ServiceApply),
            O::ServiceScale
            | O::ServiceAutoscale
            | O::ServiceRestart
            | O::ServiceActivate
            | O::ServiceStop
            | O::ServiceStart
            | O::Rebalance => Needs::Permission(P::ServiceScale),
            O::ServiceRemove => Needs::Permission(P::ServiceRemove),
            O::LeaderTransfer
            | O::NodeAlias
            | O::NodeLabel
            | O::NodeAvailability
            | O::NodeVote
            | O::ManagerStop
            | O::ManagerStart
            | O::ManagerRestart
            | O::NodeRestart
            | O::ActiveRestart => Needs::Permission(P::ManagerControl),
            O::ManagerRule
            | O::HaSet
            | O::Reconfigure
            | O::NodeRoles
            | O::NodeRemove
            | O::NodeConfirmDead
            | O::NodeDrill
            | O::NodeLeave
            | O::JoinTokenCreate
            | O::JoinTokenRevoke
            | O::QuotaSet
            | O::FailoverSet
            | O::CertificateRotate => Needs::Permission(P::MemberWrite),
            O::SecretRead => Needs::Permission(P::SecretRead),
            // An external brings its password to whatever is at its address.
            O::SecretSet | O::SecretRemove | O::ExternalSet | O::ExternalTest | O::ExternalRemove => {
                Needs::Permission(P::SecretWrite)
            }
            O::JoinTokenRead => Needs::Permission(P::TokenRead),
            O::SqlRead => Needs::Permission(P::SqlRead),
            O::SqlWrite => Needs::Permission(P::SqlWrite),
            O::GatewayFeed => Needs::Permission(P::GatewayFeed),
            O::UserRead | O::RoleRead => Needs::Permission(P::UserRead),
            O::UserCreate | O::UserPassword | O::UserDisable | O::UserEnable | O::UserRemove | O::UserToken => {
                Needs::Permission(P::UserWrite)
            }
            O::RoleGrant | O::RoleRevoke | O::RoleClone | O::RoleChange | O::RoleRemove => {
                Needs::Permission(P::RoleWrite)
            }
            O::SessionRead => Needs::Permission(P::SessionRead),
            O::SessionRevoke => Needs::Permission(P::SessionRevoke),
            O::TokenRead => Needs::Permission(P::TokenRead),
            O::TokenRevoke => Needs::Permission(P::TokenRevoke),
            O::AuditRead => Needs::Permission(P::AuditRead),
        }
    }

    /// Whether the password must be given again for it, or a token's scope `dangerous`.
    #[must_use]
    pub fn is_dangerous(self) -> bool {
        use Operation as O;
        match self {
            O::LeaderTransfer
            | O::NodeVote
            | O::NodeRoles
            | O::NodeRemove
            | O::NodeConfirmDead
            | O::NodeDrill
            | O::NodeLeave
            | O::ManagerStop
            | O::ManagerStart
            | O::ManagerRestart
            | O::ActiveRestart
            | O::NodeRestart
            | O::ManagerRule
            | O::HaSet
            | O::Reconfigure
            | O::JoinTokenCreate
            | O::CertificateRotate
            | O::SecretRemove
            | O::OwnTokenCreate
            | O::UserCreate
            | O::UserPassword
            | O::UserDisable
            | O::UserEnable
            | O::UserRemove
            | O::UserToken
            | O::RoleGrant
            | O::RoleRevoke
            | O::RoleClone
            | O::RoleChange
            | O::RoleRemove => true,
            O::HealthRead
            | O::LogIn
            | O::WhoAmI
            | O::LogOut
            | O::Confirm
            // It asks for the old password itself.
            | O::OwnPassword
            | O::OwnTokenRead
            | O::OwnTokenRevoke
            | O::OwnSessionRead
            | O::OwnSessionEnd
            | O::ClusterRead
            | O::LogRead
            | O::NodeLogRead
            | O::ServiceApply
            | O::ServiceScale
            | O::ServiceAutoscale
            | O::ServiceRestart
            | O::ServiceActivate
            | O::ServiceStop
            | O::ServiceStart
            | O::Rebalance
            | O::ServiceRemove
            | O::VipAdd
            | O::VipRemove
            | O::ExternalSet
            | O::ExternalTest
            | O::ExternalRemove
            | O::NodeAlias
            | O::NodeLabel
            | O::NodeAvailability
            | O::JoinTokenRead
            | O::JoinTokenRevoke
            | O::Join
            | O::CertificateRenew
            | O::SecretRead
            | O::SecretSet
            | O::QuotaSet
            | O::FailoverSet
            | O::SqlRead
            | O::SqlWrite
            | O::GatewayFeed
            | O::UserRead
            | O::RoleRead
            | O::SessionRead
            | O::SessionRevoke
            | O::TokenRead
            | O::TokenRevoke
            | O::AuditRead => false,
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// Nobody in particular, where a login is asked for.
    Anonymous,
    /// Anybody, where none is (`quorate dev`), or the holder of its console's token.
    Open,
    /// A process of root or of the server's own user, on the node's socket.
    Root,
    /// A user who logged in.
    User { user: UserName, session: Digest },
    /// A program with an API token.
    Token { token: ApiTokenId },
    /// A replica, with the token that its node handed to it.
    Service { replica: ReplicaId },
}

/// How the audit names whoever asks while nobody is asked who they are.
pub const ANYONE: &str = "anyone";

impl Principal {
    /// As the audit names it.
    #[must_use]
    pub fn describe(&self, access: &AccessState) -> String {
        match self {
            Principal::Anonymous => "nobody".into(),
            Principal::Open => ANYONE.into(),
            Principal::Root => "root".into(),
            Principal::User { user, .. } => user.to_string(),
            Principal::Token { token } => {
                let owner = access.tokens.get(token).map_or("?", |record| record.user.as_str());
                format!("{owner} (token {token})")
            }
            Principal::Service { replica } => {
                let service = access.services.get(replica).map_or("?", |record| record.service.as_str());
                format!("{service}/{replica}")
            }
        }
    }

    /// The user whose rights these are.
    #[must_use]
    pub fn user<'a>(&'a self, access: &'a AccessState) -> Option<&'a UserName> {
        match self {
            Principal::User { user, .. } => Some(user),
            Principal::Token { token } => access.tokens.get(token).map(|record| &record.user),
            Principal::Anonymous | Principal::Open | Principal::Root | Principal::Service { .. } => None,
        }
    }
}

/// May this be done?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// Yes, once the password was given again.
    Confirm,
    /// Not before it is known who asks.
    LogIn,
    /// No: no role of the user grants this, or the token was not made for it.
    Lacks(Permission),
    /// No: the token lacks the scope `dangerous`.
    NotDangerous,
    /// No: this is for people, and a token asks.
    NotForTokens,
    /// No: the spec of the replica's service does not grant it.
    NotGranted,
}

/// Whether `principal` may do `operation`. Everything that asks, asks here.
#[must_use]
pub fn allow(access: &AccessState, principal: &Principal, operation: Operation) -> Verdict {
    let needs = operation.needs();
    if needs == Needs::Nothing {
        return Verdict::Allow;
    }
    let (user, token) = match principal {
        Principal::Anonymous => return Verdict::LogIn,
        Principal::Open | Principal::Root => return Verdict::Allow,
        Principal::Service { replica } => return allow_service(access, *replica, operation),
        Principal::User { user, .. } => (user, None),
        Principal::Token { token } => match access.tokens.get(token) {
            Some(record) => (&record.user, Some(record)),
            None => return Verdict::LogIn,
        },
    };
    let Some(record) = access.users.get(user).filter(|record| !record.disabled) else { return Verdict::LogIn };
    match needs {
        Needs::Nothing | Needs::Login => {}
        Needs::Person if token.is_some() => return Verdict::NotForTokens,
        Needs::Person => {}
        Needs::Permission(permission) => {
            let granted = record.roles.iter().any(|role| access.grants(role, permission));
            let in_scope = token.is_none_or(|token| token.scopes.contains(&permission));
            if !granted || !in_scope {
                return Verdict::Lacks(permission);
            }
        }
    }
    match (operation.is_dangerous(), token) {
        (false, _) => Verdict::Allow,
        (true, None) => Verdict::Confirm,
        (true, Some(token)) if token.dangerous => Verdict::Allow,
        (true, Some(_)) => Verdict::NotDangerous,
    }
}

/// A replica may do what its spec grants, and nothing that a person would have to confirm.
fn allow_service(access: &AccessState, replica: ReplicaId, operation: Operation) -> Verdict {
    let Some(record) = access.services.get(&replica) else { return Verdict::LogIn };
    match operation.needs() {
        Needs::Nothing | Needs::Login => Verdict::Allow,
        Needs::Permission(permission) if record.allows(permission) && !operation.is_dangerous() => Verdict::Allow,
        Needs::Person | Needs::Permission(_) => Verdict::NotGranted,
    }
}

/// Whether whoever may read a database at all may read this one.
#[must_use]
pub fn allow_database(access: &AccessState, principal: &Principal, database: Database) -> Verdict {
    match principal {
        Principal::Service { replica } => match access.services.get(replica) {
            Some(record) if record.reads(database) => Verdict::Allow,
            Some(_) => Verdict::NotGranted,
            None => Verdict::LogIn,
        },
        _ => Verdict::Allow,
    }
}

/// The roles that every cluster has: name, what for, whether it can be changed, what it grants.
const BUILT_IN: &[(&str, &str, bool, &[Permission])] = {
    use Permission as P;
    &[
        ("admin", "everything", true, P::ALL),
        (
            "auditor",
            "sees who may do what and who did what, changes nothing",
            true,
            &[P::ClusterRead, P::UserRead, P::SessionRead, P::TokenRead, P::AuditRead, P::SecretRead],
        ),
        (
            "deployer",
            "brings services out and writes to the database",
            false,
            &[
                P::ClusterRead,
                P::LogRead,
                P::ServiceApply,
                P::ServiceScale,
                P::ServiceRemove,
                P::SqlRead,
                P::SqlWrite,
                P::SecretRead,
                P::SecretWrite,
            ],
        ),
        (
            "integration",
            "for programs: reads the cluster, reads and writes the database, feeds gateways",
            false,
            &[P::ClusterRead, P::SqlRead, P::SqlWrite, P::GatewayFeed],
        ),
        (
            "maintainer",
            "runs the cluster and its services; no users, no audit",
            false,
            &[
                P::ClusterRead,
                P::LogRead,
                P::NodeLogRead,
                P::ServiceApply,
                P::ServiceScale,
                P::ServiceRemove,
                P::ManagerControl,
                P::MemberWrite,
                P::SqlRead,
                P::SqlWrite,
                P::SecretRead,
                P::SecretWrite,
            ],
        ),
        (
            "operator",
            "keeps it running: scales services, moves leadership",
            false,
            &[P::ClusterRead, P::LogRead, P::NodeLogRead, P::ServiceScale, P::ManagerControl, P::SqlRead],
        ),
        ("viewer", "sees everything but users and audit", false, &[P::ClusterRead, P::LogRead, P::SqlRead]),
    ]
};

/// The role that nobody can lose altogether.
pub const ADMIN: &str = "admin";

/// Every role that Quorate brings along, as it is before somebody changes it.
pub fn built_in() -> impl Iterator<Item = RoleRecord> {
    BUILT_IN.iter().map(|(name, purpose, fixed, permissions)| RoleRecord {
        name: RoleName::new(name).expect("the table holds role names"),
        purpose: (*purpose).to_owned(),
        fixed: *fixed,
        built_in: true,
        permissions: permissions.iter().copied().collect::<BTreeSet<_>>(),
    })
}
