//! `cases` shows plans as an operator would read them, written as `text`; `properties` holds for all.

mod cases;
mod properties;
mod text;
