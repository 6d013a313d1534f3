;; Wants a message that is a list of lists, five deep: a few bytes of it are a tree in the host's memory.
(component
  (core module $m
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0))
    (func (export "handle") (param i32 i32)))
  (core instance $i (instantiate $m))
  (func $handle (param "message" (list (list (list (list (list string))))))
    (canon lift (core func $i "handle") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
  (instance $handler (export "handle" (func $handle)))
  (export "cofferdam:plugin/handler@0.1.0" (instance $handler)))
