//! `cases` shows plans as an operator would read them, written as `text`.

mod cases;
mod text;
