;; A table that grows until it is refused.
(table $t 1 funcref)
(func $handle (param $m i32) (result i32)
  (loop $more
    (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 10000)) (i32.const -1))))
  unreachable)
