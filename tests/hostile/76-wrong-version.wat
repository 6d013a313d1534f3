;;@ world other-version
;; The contract of another day.
(module
  (memory (export "memory") 1)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0))
  (func (export "cofferdam:plugin/handler@0.2.0#handle") (param i32 i32)))
