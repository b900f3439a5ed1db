def show(*a): print("SHOW",a)
