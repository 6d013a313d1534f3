;; Calls a function through a table as what it is not.
(type $other (func (param i64)))
(func $plain)
(table funcref (elem $plain))
(func $handle (param $m i32) (result i32)
  (call_indirect (type $other) (i64.const 1) (i32.const 0)) (i32.const 0))
