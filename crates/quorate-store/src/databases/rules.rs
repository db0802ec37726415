//! What users' SQL may not do, and how what it does is made the same on every node.

use quorate_model::id::LogIndex;
use quorate_model::planted::{Bug, planted};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rusqlite::functions::FunctionFlags;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, Error};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Prefix of tables that belong to Quorate.
pub(super) const OWN_PREFIX: &str = "_quorate_";

/// In every statement of our own on a writer connection, and in none of the users': so a cached
/// statement of ours can never be run by them.
pub(super) const OWN_MARK: &str = "/*quorate*/";

/// Pragmas that only read and answer the same on every node.
pub(super) const PRAGMAS: &[&str] = &[
    "table_info",
    "table_xinfo",
    "table_list",
    "index_info",
    "index_xinfo",
    "index_list",
    "foreign_key_list",
    "foreign_key_check",
    "integrity_check",
    "quick_check",
];

/// VM instructions between two looks at the budget.
const BUDGET_STEP: i32 = 1_000_000;
/// Looks until a statement is ended: 50 million instructions, some seconds of work. A count and
/// not a time, so that every node ends it at the same place.
const BUDGET_LOOKS: u32 = 50;

/// Bytes of a value, a row or a statement; more is an error. The outcome of an entry, which is
/// kept as a value, must fit too (see `RETURNED_MAX`).
const LENGTH_MAX: usize = 128 << 20;

/// What the functions and hooks of a writer connection share with the writer.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    own: Arc<AtomicBool>,
    /// A statement of users' is prepared: whatever is prepared now, a virtual table does.
    running: Arc<AtomicBool>,
    /// A statement of the entry changed the schema, or tried to.
    schema: Arc<AtomicBool>,
    rng: Arc<Mutex<ChaCha8Rng>>,
    /// Rows changed by the last statement, and by all of the entry's.
    changes: Arc<AtomicI64>,
    total_changes: Arc<AtomicI64>,
    looks: Arc<AtomicU32>,
}

impl Surroundings {
    /// Puts the rules in force on a writer connection.
    pub(super) fn install(connection: &mut Connection) -> Result<Surroundings, Error> {
        let shared = Surroundings {
            own: Arc::new(AtomicBool::new(true)),
            running: Arc::default(),
            schema: Arc::default(),
            rng: Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(0))),
            changes: Arc::default(),
            total_changes: Arc::default(),
            looks: Arc::default(),
        };
        shared.functions(connection)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, i32::try_from(LENGTH_MAX).expect("it is small"))?;
        let flags = shared.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            if flags.own.load(Ordering::Relaxed) {
                return Authorization::Allow;
            }
            if changes_schema(&context.action) {
                flags.schema.store(true, Ordering::Relaxed);
            }
            let nested = flags.running.load(Ordering::Relaxed);
            verdict(may_run(&context.action) || nested && is_data_version(&context.action))
        }))?;
        let flags = shared.clone();
        let over = move || flags.looks.fetch_add(1, Ordering::Relaxed) + 1 >= BUDGET_LOOKS;
        let own = shared.own.clone();
        connection.progress_handler(BUDGET_STEP, Some(move || !own.load(Ordering::Relaxed) && over()))?;
        Ok(shared)
    }

    fn functions(&self, connection: &Connection) -> Result<(), Error> {
        // Innocuous: schemas may use them in defaults and triggers although they trust nothing.
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
        let rng = self.rng.clone();
        connection.create_scalar_function("random", 0, flags, move |_| {
            Ok(rng.lock().unwrap_or_else(PoisonError::into_inner).next_u64().cast_signed())
        })?;
        let rng = self.rng.clone();
        connection.create_scalar_function("randomblob", 1, flags, move |context| {
            let wanted = context.get::<Option<i64>>(0)?.unwrap_or(1).max(1);
            let wanted = usize::try_from(wanted).ok().filter(|wanted| *wanted <= LENGTH_MAX);
            let wanted = wanted.ok_or_else(|| Error::UserFunctionError("randomblob() of more than 128 MiB".into()))?;
            let mut bytes = vec![0; wanted];
            rng.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes);
            Ok(bytes)
        })?;
        for (name, cell) in [("changes", &self.changes), ("total_changes", &self.total_changes)] {
            let cell = cell.clone();
            connection.create_scalar_function(name, 0, flags, move |_| Ok(cell.load(Ordering::Relaxed)))?;
        }
        Ok(())
    }

    /// An entry begins: everything that statements could remember of earlier ones is forgotten.
    pub(super) fn begin_entry(&self, index: LogIndex, seed: u64) {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&index.0.to_le_bytes());
        if !planted(Bug::LocalRandomness) {
            *self.rng.lock().unwrap_or_else(PoisonError::into_inner) = ChaCha8Rng::from_seed(key);
        }
        self.schema.store(false, Ordering::Relaxed);
        self.changes.store(0, Ordering::Relaxed);
        self.total_changes.store(0, Ordering::Relaxed);
    }

    /// Runs users' SQL under the rules.
    pub(super) fn under_rules<T>(&self, work: impl FnOnce() -> T) -> T {
        self.running.store(false, Ordering::Relaxed);
        self.own.store(false, Ordering::Relaxed);
        let done = work();
        self.own.store(true, Ordering::Relaxed);
        done
    }

    /// A statement is prepared and begins to run, with its whole budget.
    pub(super) fn begin_statement(&self) {
        self.looks.store(0, Ordering::Relaxed);
        self.running.store(true, Ordering::Relaxed);
    }

    /// Whether a statement of the entry changed the schema, or tried to.
    pub(super) fn schema_changed(&self) -> bool {
        self.schema.load(Ordering::Relaxed)
    }

    pub(super) fn statement_changed(&self, rows: u64) {
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        self.changes.store(rows, Ordering::Relaxed);
        self.total_changes.fetch_add(rows, Ordering::Relaxed);
    }

    /// Whether the last statement was ended because it did too much.
    pub(super) fn over_budget(&self) -> bool {
        self.looks.load(Ordering::Relaxed) >= BUDGET_LOOKS
    }
}

/// Whether replicated SQL may do this.
fn may_run(action: &AuthAction<'_>) -> bool {
    use AuthAction as A;
    match action {
        // How far the file is depends on batches, and so does the layout of that page.
        A::Read { table_name, .. } => {
            !is_ours(table_name)
                && !["dbstat", "pragma_data_version"].iter().any(|name| table_name.eq_ignore_ascii_case(name))
        }
        _ => may_query(action),
    }
}

/// Whether a query may do this. What writes it cannot do anyway.
pub(super) fn may_query(action: &AuthAction<'_>) -> bool {
    use AuthAction as A;
    match action {
        // The statistics in memory would outlive a rollback, and plans would differ after a restart.
        A::Analyze { .. }
        | A::Attach { .. }
        | A::Detach { .. }
        | A::Transaction { .. }
        | A::Savepoint { .. }
        | A::CreateTempIndex { .. }
        | A::CreateTempTable { .. }
        | A::CreateTempTrigger { .. }
        | A::CreateTempView { .. }
        | A::DropTempIndex { .. }
        | A::DropTempTable { .. }
        | A::DropTempTrigger { .. }
        | A::DropTempView { .. } => false,
        A::Pragma { pragma_name, .. } => PRAGMAS.iter().any(|known| known.eq_ignore_ascii_case(pragma_name)),
        A::Function { function_name } => !function_name.eq_ignore_ascii_case("load_extension"),
        // With the last number used up an INSERT fails like a full disk does, at which nodes stop.
        A::Insert { table_name } | A::Update { table_name, column_name: "seq" }
            if table_name.eq_ignore_ascii_case("sqlite_sequence") =>
        {
            false
        }
        A::Insert { table_name }
        | A::Delete { table_name }
        | A::Update { table_name, .. }
        | A::CreateTable { table_name }
        | A::DropTable { table_name }
        | A::AlterTable { table_name, .. }
        | A::CreateIndex { table_name, .. }
        | A::DropIndex { table_name, .. }
        | A::CreateTrigger { table_name, .. }
        | A::DropTrigger { table_name, .. }
        | A::CreateVtable { table_name, .. }
        | A::DropVtable { table_name, .. } => !is_ours(table_name),
        _ => true,
    }
}

/// FTS5 asks for this itself to see whether another connection wrote. Users may not: the answer
/// depends on when the file was opened.
pub(super) fn is_data_version(action: &AuthAction<'_>) -> bool {
    matches!(action, AuthAction::Pragma { pragma_name, .. } if pragma_name.eq_ignore_ascii_case("data_version"))
}

fn changes_schema(action: &AuthAction<'_>) -> bool {
    use AuthAction as A;
    !matches!(
        action,
        A::Select
            | A::Recursive
            | A::Read { .. }
            | A::Function { .. }
            | A::Pragma { .. }
            | A::Insert { .. }
            | A::Update { .. }
            | A::Delete { .. }
    )
}

fn is_ours(table: &str) -> bool {
    table.get(..OWN_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(OWN_PREFIX))
}

pub(super) fn verdict(allowed: bool) -> Authorization {
    if allowed { Authorization::Allow } else { Authorization::Deny }
}

/// Why a statement was refused by [`may_run`], for people; SQLite only says "not authorized".
pub(super) const NOT_ALLOWED: &str = "not allowed in replicated SQL: transactions (use the request's `transaction`), ATTACH, TEMP objects, ANALYZE, most PRAGMAs, numbers in sqlite_sequence (delete its rows instead) and Quorate's own tables";
